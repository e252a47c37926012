// What the fast kernels leave: any types, strides and ranks, in f32. And small helpers of the launchers.
#include "common.cuh"

namespace lora {

constexpr int THREADS = 256;

__device__ __forceinline__ float load_as(const void* p, long long i, int type) {
  return type == F32    ? static_cast<const float*>(p)[i]
         : type == BF16 ? to_float(static_cast<const bf16*>(p)[i])
                        : to_float(static_cast<const f16*>(p)[i]);
}

__device__ __forceinline__ void store_as(void* p, long long i, int type, float v) {
  if (type == F32) {
    static_cast<float*>(p)[i] = v;
  } else if (type == BF16) {
    static_cast<bf16*>(p)[i] = from_float<bf16>(v);
  } else {
    static_cast<f16*>(p)[i] = from_float<f16>(v);
  }
}

}  // namespace lora

using namespace lora;

// One block a pair and part of the columns; factors of type `skip` are somebody else's. Ranks in dynamic shared memory.
// x and y have strides: token (or pair, x_k 0), k, column. Column o of target j is at y_slice * j + y_step * o.
extern "C" __global__ void __launch_bounds__(256) lora_any(
    const void* x, void* y, const void* table, const int* ids, const int* map, const int* mapping, const float* weights,
    long long x_t, long long x_k, long long x_c, long long y_t, long long y_k, long long y_c, long long y_slice,
    long long y_step, int x_type, int y_type, int skip, int in, int out, int add, int P, int K, int num_global, int slots,
    int target, int slices, int max_rank) {
  extern __shared__ float ranks[];
  wait_for_predecessor();
  const Pairs pairs{ids, map, mapping, P, K, num_global, slots};
  const int p = blockIdx.x;
  const int slot = pairs.slot(p);
  const int expert = pairs.expert(p);
  if (slot < 0 || expert < 0) {
    return;
  }
  const long long t = p / K;
  const long long k = p % K;
  const long long x_row = t * x_t + k * x_k;
  const int lane = threadIdx.x % 32;
  for (int j = 0; j < slices; j++) {
    const Factor f = load_factor(static_cast<const Factor*>(table), slot, target + j, expert);
    if (f.rank == 0 || f.type == skip) {
      continue;
    }
    if (f.rank > max_rank) {
      __trap();  // see kernels.cuh
    }
    const int a_type = f.type < MIXED ? f.type : (f.type - MIXED) % 4;
    const int b_type = f.type < MIXED ? f.type : (f.type - MIXED) / 4;
    __syncthreads();
    for (int r = threadIdx.x / 32; r < f.rank; r += THREADS / 32) {
      const long long a = f.a_expert * expert + (long long)r * in;
      float sum = 0.0f;
      for (int i = lane; i < in; i += 32) {
        sum += load_as(f.a, a + i, a_type) * load_as(x, x_row + i * x_c, x_type);
      }
      for (int d = 16; d > 0; d >>= 1) {
        sum += __shfl_xor_sync(ALL, sum, d);
      }
      if (lane == 0) {
        ranks[r] = sum;
      }
    }
    __syncthreads();
    const float weight = weights == nullptr ? 1.0f : weights[p];
    for (int o = blockIdx.y * THREADS + threadIdx.x; o < out; o += gridDim.y * THREADS) {
      const long long b = f.b_expert * expert + (long long)o * f.b_row;
      float sum = 0.0f;
      for (int r = 0; r < f.rank; r++) {
        sum += ranks[r] * load_as(f.b, b + r, b_type);
      }
      const long long at = t * y_t + k * y_k + (y_slice * j + y_step * o) * y_c;
      sum *= weight;
      store_as(y, at, y_type, add ? load_as(y, at, y_type) + sum : sum);
    }
  }
}

// y += delta for the elements that a call wrote into delta; nothing else is read or written. Same strides as y above,
// contiguous rows of delta. One block a pair and part of the columns.
extern "C" __global__ void __launch_bounds__(256) lora_add_delta(
    const void* delta, void* y, const void* table, const int* ids, const int* map, const int* mapping, long long y_t,
    long long y_k, long long y_c, long long y_slice, long long y_step, int type, int out, int P, int K, int num_global,
    int slots, int target, int slices) {
  wait_for_predecessor();
  const Pairs pairs{ids, map, mapping, P, K, num_global, slots};
  const int p = blockIdx.x;
  const int slot = pairs.slot(p);
  const int expert = pairs.expert(p);
  if (slot < 0 || expert < 0) {
    return;
  }
  for (int j = 0; j < slices; j++) {
    if (load_factor(static_cast<const Factor*>(table), slot, target + j, expert).rank == 0) {
      continue;
    }
    for (int o = blockIdx.y * THREADS + threadIdx.x; o < out; o += gridDim.y * THREADS) {
      const long long column = y_slice * j + y_step * o;
      const long long at = p / K * y_t + p % K * y_k + column * y_c;
      store_as(y, at, type,
               load_as(y, at, type) + load_as(delta, (long long)p * slices * out + column, type));
    }
  }
}

// A strided factor [E, rows, columns] into a dense one with rows and columns padded by zeros; same type.
extern "C" __global__ void __launch_bounds__(256) lora_pack(const void* from, void* to, long long n, long long s_e,
                                                            long long s_r, long long s_c, int rows, int columns,
                                                            int to_rows, int to_columns, int bytes) {
  const long long i = (long long)blockIdx.x * THREADS + threadIdx.x;
  wait_for_predecessor();
  if (i >= n) {
    return;
  }
  const int c = i % to_columns;
  const int r = i / to_columns % to_rows;
  const long long at = i / to_columns / to_rows * s_e + r * s_r + c * s_c;
  const bool there = r < rows && c < columns;
  if (bytes == 4) {
    static_cast<unsigned*>(to)[i] = there ? static_cast<const unsigned*>(from)[at] : 0u;
  } else {
    static_cast<unsigned short*>(to)[i] = there ? static_cast<const unsigned short*>(from)[at] : (unsigned short)0;
  }
}

// Ids for sorting pairs that all take their factors from the same place: 0, or -1 for no local expert.
extern "C" __global__ void __launch_bounds__(256) lora_one_expert(const int* ids, const int* map, int* out, int P,
                                                                  int num_global) {
  const int p = blockIdx.x * THREADS + threadIdx.x;
  wait_for_predecessor();
  if (p < P) {
    const Pairs pairs{ids, map, nullptr, P, 1, num_global, 0};
    out[p] = pairs.expert(p) < 0 ? -1 : 0;
  }
}
