// What experts need around a punica wrapper: the rows of the sort with their expert and adapter, and the activation of their w13 product.
#include "activation.cuh"
#include "common.cuh"

namespace moe {

constexpr int VECTOR = 8;

// Waits like wait_for_predecessor, but lets nobody start early: a product without a single tile ends without having waited, and what comes
// after it waits for that product alone and reads the lists that are made here.
__device__ __forceinline__ void wait_alone() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A block per row r of the sort, or of the pairs where pair_of is null. x_of_row[r] = x[token], times the pair's weight where weights are
// given; expert_of_row[r] and slot_of_row[r] say whose it is, -1 = nobody's. H is a multiple of 8, rows are 16-byte aligned.
template <class T>
__device__ void expand_rows(const T* x, const int* pair_of, const int* rows, const int* ids, const int* map, const int* mapping,
                            const float* weights, T* x_of_row, int* expert_of_row, int* slot_of_row, int K, int H,
                            int num_global, int E) {
  const int r = blockIdx.x;
  wait_alone();
  int p = -1;
  int e = -1;
  if (rows == nullptr || r < *rows) {
    p = pair_of == nullptr ? r : pair_of[r];
    e = local_expert(ids[p], map, num_global, E);
  }
  const int t = p / K;
  if (threadIdx.x == 0) {
    expert_of_row[r] = e;
    slot_of_row[r] = e < 0 || mapping == nullptr ? -1 : mapping[t];
  }
  if (e < 0) {
    return;
  }
  const float weight = weights == nullptr ? 1.0f : weights[p];
  const T* from = x + (size_t)t * H;
  T* to = x_of_row + (size_t)r * H;
  for (int c = threadIdx.x * VECTOR; c < H; c += blockDim.x * VECTOR) {
    Pack<T, VECTOR> v = *reinterpret_cast<const Pack<T, VECTOR>*>(from + c);
    if (weights != nullptr) {
#pragma unroll
      for (int i = 0; i < VECTOR; i++) {
        v.v[i] = from_float<T>(weight * to_float(v.v[i]));
      }
    }
    *reinterpret_cast<Pack<T, VECTOR>*>(to + c) = v;
  }
}

// out[r] = f(y[r]) for the rows that belong to somebody; y is [rows, 2I] with gate columns first, or [rows, I]. With delta, which lies as
// y does: f(y[r] + delta[r]). I is a multiple of 8; a thread makes 8 columns.
template <class T>
__device__ void activate_rows(const T* y, const T* delta, const int* expert_of_row, T* out, int P, int I, int gated, int kind,
                              float alpha, float beta, float limit) {
  wait_for_predecessor();
  const int vectors = I / VECTOR;
  const long long n = (long long)P * vectors;
  const int up = gated ? I : 0;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
    const int r = (int)(i / vectors);
    const int c = (int)(i % vectors) * VECTOR;
    if (expert_of_row[r] < 0) {
      continue;
    }
    const size_t at = (size_t)r * (I + up) + c;
    float u[VECTOR];
    float g[VECTOR] = {};
    Pack<T, VECTOR> v = *reinterpret_cast<const Pack<T, VECTOR>*>(y + at + up);
#pragma unroll
    for (int k = 0; k < VECTOR; k++) {
      u[k] = to_float(v.v[k]);
    }
    if (gated) {
      v = *reinterpret_cast<const Pack<T, VECTOR>*>(y + at);
#pragma unroll
      for (int k = 0; k < VECTOR; k++) {
        g[k] = to_float(v.v[k]);
      }
    }
    if (delta != nullptr) {
      v = *reinterpret_cast<const Pack<T, VECTOR>*>(delta + at + up);
#pragma unroll
      for (int k = 0; k < VECTOR; k++) {
        u[k] += to_float(v.v[k]);
      }
      if (gated) {
        v = *reinterpret_cast<const Pack<T, VECTOR>*>(delta + at);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
          g[k] += to_float(v.v[k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < VECTOR; k++) {
      v.v[k] = from_float<T>(activate(kind, g[k], u[k], alpha, beta, limit));
    }
    *reinterpret_cast<Pack<T, VECTOR>*>(out + (size_t)r * I + c) = v;
  }
}

// y[r] += delta[r] for the rows that belong to somebody, in f32. H is a multiple of 8.
template <class T> __device__ void add_rows(T* y, const T* delta, const int* expert_of_row, int P, int H) {
  wait_for_predecessor();
  const int vectors = H / VECTOR;
  const long long n = (long long)P * vectors;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
    if (expert_of_row[i / vectors] < 0) {
      continue;
    }
    Pack<T, VECTOR> a = reinterpret_cast<const Pack<T, VECTOR>*>(y)[i];
    Pack<T, VECTOR> b = reinterpret_cast<const Pack<T, VECTOR>*>(delta)[i];
#pragma unroll
    for (int k = 0; k < VECTOR; k++) {
      a.v[k] = from_float<T>(to_float(a.v[k]) + to_float(b.v[k]));
    }
    reinterpret_cast<Pack<T, VECTOR>*>(y)[i] = a;
  }
}

}  // namespace moe

using namespace moe;

#define ROWS(A)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_expand_rows_##A(const A* x, const int* pair_of, const int* rows, const int* ids, const int* map,            \
                          const int* mapping, const float* weights, A* x_of_row, int* expert_of_row,                  \
                          int* slot_of_row, int K, int H, int num_global, int E) {                                    \
    expand_rows<A>(x, pair_of, rows, ids, map, mapping, weights, x_of_row, expert_of_row, slot_of_row, K, H,          \
                   num_global, E);                                                                                    \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_activate_rows_##A(const A* y, const A* delta, const int* expert_of_row, A* out, int P, int I, int gated,    \
                            int kind, float alpha, float beta, float limit) {                                         \
    activate_rows<A>(y, delta, expert_of_row, out, P, I, gated, kind, alpha, beta, limit);                            \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                   \
      moe_add_rows_##A(A* y, const A* delta, const int* expert_of_row, int P, int H) {                                \
    add_rows<A>(y, delta, expert_of_row, P, H);                                                                       \
  }

ROWS(bf16)
ROWS(f16)
