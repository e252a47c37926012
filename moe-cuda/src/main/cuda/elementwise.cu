// Activation, casts, dispatch to the batched format, weighted combine, the block's last sum.
#include "activation.cuh"
#include "common.cuh"

namespace moe {

// A block per row of I results. Gate and up of row r begin at r * row_stride and step by col_stride. With counts [experts]:
// row r is row r % rows_per_expert of expert r / rows_per_expert, and rows past the count are left alone.
template <class In, class Out>
__device__ void activation(const In* gate, const In* up, Out* out, int I, long long row_stride, int col_stride, int kind,
                           float alpha, float beta, float limit, const int* counts, int rows_per_expert) {
  const int r = blockIdx.x;
  wait_for_predecessor();
  if (counts != nullptr && r % rows_per_expert >= counts[r / rows_per_expert]) {
    return;
  }
  for (int i = threadIdx.x; i < I; i += blockDim.x) {
    long long at = r * row_stride + (long long)i * col_stride;
    float g = gate == nullptr ? 0.0f : to_float(gate[at]);
    out[(size_t)r * I + i] = from_float<Out>(activate(kind, g, to_float(up[at]), alpha, beta, limit));
  }
}

template <class In, class Out> __device__ void cast(const In* in, Out* out, long long n) {
  wait_for_predecessor();
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
    out[i] = from_float<Out>(to_float(in[i]));
  }
}

// The row of a pair: the pair itself, its place in the sort, or (with off) its place among its expert's max_rows.
__device__ __forceinline__ long long pair_row(int p, const int* ids, const int* map, const int* pos_of, const int* off,
                                              int num_global, int E, int max_rows) {
  int e = ids == nullptr ? 0 : local_expert(ids[p], map, num_global, E);
  int row = e < 0 ? -1 : pos_of == nullptr ? p : pos_of[p];
  if (off == nullptr || row < 0) {
    return row;
  }
  int j = row - off[e];
  return j < max_rows ? (long long)e * max_rows + j : -1;
}

constexpr int COMBINE_ROWS = 64;  // pairs of a token whose rows are looked up at once

// out[t] = sum over k, in f32, of weights[t, k] * y[row of pair (t, k)]; weights null: 1. A block makes 4 * blockDim.x columns.
template <class Y, class Out>
__device__ void combine(const Y* y, const int* ids, const int* map, const int* pos_of, const int* off,
                        const float* weights, Out* out, int K, int H, int num_global, int E, int max_rows, int wide) {
  __shared__ long long row[COMBINE_ROWS];
  __shared__ float weight[COMBINE_ROWS];
  const int t = blockIdx.x;
  const int c = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
  wait_for_predecessor();
  float acc[4] = {};
  for (int k0 = 0; k0 < K; k0 += COMBINE_ROWS) {
    int nk = min(COMBINE_ROWS, K - k0);
    __syncthreads();
    if ((int)threadIdx.x < nk) {
      int p = t * K + k0 + threadIdx.x;
      row[threadIdx.x] = pair_row(p, ids, map, pos_of, off, num_global, E, max_rows);
      weight[threadIdx.x] = weights == nullptr ? 1.0f : weights[p];
    }
    __syncthreads();
    for (int k = 0; k < nk; k++) {
      if (row[k] < 0) {
        continue;
      }
      const Y* from = y + row[k] * H + c;
      if (wide) {
        if (c < H) {
          Pack<Y, 4> v = *reinterpret_cast<const Pack<Y, 4>*>(from);
#pragma unroll
          for (int i = 0; i < 4; i++) {
            acc[i] += weight[k] * to_float(v.v[i]);
          }
        }
      } else {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          acc[i] += c + i < H ? weight[k] * to_float(from[i]) : 0.0f;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (c + i < H) {
      out[(size_t)t * H + c + i] = from_float<Out>(acc[i]);
    }
  }
}

// batched[e, j] = hidden[t] (times weight where given) for the j-th pair (t, k) of expert e. A block per pair.
template <class T>
__device__ void dispatch(const T* hidden, const int* ids, const int* map, const int* pos_of, const int* off,
                         const float* weights, const int* slot, T* batched, int* counts, int* batched_slot, int K, int H,
                         int num_global, int E, int max_rows) {
  const int p = blockIdx.x;
  wait_for_predecessor();
  for (int e = p * blockDim.x + threadIdx.x; e < E; e += gridDim.x * blockDim.x) {
    counts[e] = min(off[e + 1] - off[e], max_rows);
  }
  long long row = pair_row(p, ids, map, pos_of, off, num_global, E, max_rows);
  if (row < 0) {
    return;
  }
  if (slot != nullptr && threadIdx.x == 0) {
    batched_slot[row] = slot[p / K];
  }
  const T* from = hidden + (size_t)(p / K) * H;
  T* to = batched + row * H;
  for (int h = threadIdx.x; h < H; h += blockDim.x) {
    to[h] = weights == nullptr ? from[h] : from_float<T>(to_float(from[h]) * weights[p]);
  }
}

// out[t] = routed[t] + sigmoid(gate[t]) * shared[t]; no gate: factor 1; no shared: routed alone.
template <class In, class Out>
__device__ void add_shared(const In* routed, const float* shared, const float* gate, Out* out, int H) {
  const size_t t = blockIdx.x;
  wait_for_predecessor();
  float g = gate == nullptr ? 1.0f : sigmoid(gate[t]);
  for (int h = threadIdx.x; h < H; h += blockDim.x) {
    float v = to_float(routed[t * H + h]);
    out[t * H + h] = from_float<Out>(shared == nullptr ? v : v + g * shared[t * H + h]);
  }
}

}  // namespace moe

using namespace moe;
using f32 = float;

#define TWO_TYPES(A, B)                                                                                               \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_activation_##A##_##B(const A* gate, const A* up, B* out, int I, long long row_stride, int col_stride,       \
                               int kind, float alpha, float beta, float limit, const int* counts,                     \
                               int rows_per_expert) {                                                                 \
    activation<A, B>(gate, up, out, I, row_stride, col_stride, kind, alpha, beta, limit, counts, rows_per_expert);    \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) moe_cast_##A##_##B(const A* in, B* out, long long n) {            \
    cast<A, B>(in, out, n);                                                                                           \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_combine_##A##_##B(const A* y, const int* ids, const int* map, const int* pos_of, const int* off,            \
                            const float* weights, B* out, int K, int H, int num_global, int E, int max_rows,          \
                            int wide) {                                                                               \
    combine<A, B>(y, ids, map, pos_of, off, weights, out, K, H, num_global, E, max_rows, wide);                       \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_add_shared_##A##_##B(const A* routed, const float* shared, const float* gate, B* out, int H) {              \
    add_shared<A, B>(routed, shared, gate, out, H);                                                                   \
  }

TWO_TYPES(f32, f32)
TWO_TYPES(f32, bf16)
TWO_TYPES(f32, f16)
TWO_TYPES(bf16, f32)
TWO_TYPES(bf16, bf16)
TWO_TYPES(bf16, f16)
TWO_TYPES(f16, f32)
TWO_TYPES(f16, bf16)
TWO_TYPES(f16, f16)

#define ONE_TYPE(A)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_dispatch_##A(const A* hidden, const int* ids, const int* map, const int* pos_of, const int* off,            \
                       const float* weights, const int* slot, A* batched, int* counts, int* batched_slot, int K,      \
                       int H, int num_global, int E, int max_rows) {                                                  \
    dispatch<A>(hidden, ids, map, pos_of, off, weights, slot, batched, counts, batched_slot, K, H, num_global, E,     \
                max_rows);                                                                                            \
  }

ONE_TYPE(f32)
ONE_TYPE(bf16)
ONE_TYPE(f16)
