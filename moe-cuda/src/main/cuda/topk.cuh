// One token's choice of experts without groups, in registers of a warp: what routing.cu and kernels that route beside other work share.
#pragma once
#include "common.cuh"

namespace moe {

enum Scoring { SOFTMAX = 0, SOFTMAX_TOPK = 1, SIGMOID = 2, SQRT_SOFTPLUS = 3, SPARSE_MIXER = 4 };

constexpr unsigned FULL = 0xffffffffu;
constexpr unsigned TAKEN = 0;  // chosen already, or in a group that did not stay
constexpr unsigned NOT_A_NUMBER = 1;

// Larger float, larger key; NaN below -inf, so that it is chosen last and ids stay distinct; -0 equals 0.
__device__ __forceinline__ unsigned order_key(float v) {
  if (isnan(v)) {
    return NOT_A_NUMBER;
  }
  unsigned b = __float_as_uint(v + 0.0f);
  return (b & 0x80000000u) != 0 ? ~b : b | 0x80000000u;
}

// The float of a key that is not NaN's.
__device__ __forceinline__ float of_key(unsigned key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float warp_sum(float v) {
  for (int d = 16; d > 0; d >>= 1) {
    v += __shfl_xor_sync(FULL, v, d);
  }
  return v;
}

__device__ __forceinline__ float warp_max(float v) {
  for (int d = 16; d > 0; d >>= 1) {
    v = fmaxf(v, __shfl_xor_sync(FULL, v, d));
  }
  return v;
}

template <class T> __device__ __forceinline__ void exchange(bool swap, T& a, T& b) {
  const T first = swap ? b : a;
  b = swap ? a : b;
  a = first;
}

__device__ __forceinline__ float score(float z, int scoring) {
  switch (scoring) {
    case SIGMOID:
      return 1.0f / (1.0f + expf(-z));
    case SQRT_SOFTPLUS:
      return sqrtf(fmaxf(z, 0.0f) + log1pf(expf(-fabsf(z))) + (isnan(z) ? z : 0.0f));
    default:
      return z;
  }
}

// Without groups and up to 32 N experts, in registers: a lane has experts lane + 32 i and sorts them, so that a round is one reduction over
// the lanes' best and a vote, and the winner's lane goes on to its next. Same choice as moe_topk, ties by the lower expert. All lanes of a
// warp together; z [E], ids [K] and weights [K] are the token's.
template <int N>
__device__ __forceinline__ void topk_token(const float* __restrict__ z, const float* __restrict__ bias, int* __restrict__ ids,
                                           float* __restrict__ weights, int E, int K, int scoring, int renormalize, float epsilon,
                                           float scale) {
  const int lane = threadIdx.x % 32;
  float s[N];
  unsigned key[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int e = lane + 32 * i;
    s[i] = e < E ? z[e] : -INFINITY;
  }
  if (scoring == SOFTMAX) {
    unsigned most = order_key(s[0]);
#pragma unroll
    for (int i = 1; i < N; i++) {
      most = max(most, order_key(s[i]));
    }
    const float m = of_key(__reduce_max_sync(FULL, most));
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; i++) {
      s[i] = lane + 32 * i < E ? expf(s[i] - m) : 0.0f;
      sum += s[i];
    }
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < N; i++) {
      s[i] = s[i] / sum;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) {
      s[i] = score(s[i], scoring);
    }
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    const int e = lane + 32 * i;
    key[i] = e < E ? order_key(bias == nullptr ? s[i] : s[i] + bias[e]) : TAKEN;
  }
  int id[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    id[i] = lane + 32 * i;
  }
#pragma unroll
  for (int round = 0; round < N; round++) {
#pragma unroll
    for (int i = round % 2; i + 1 < N; i += 2) {
      const bool swap = key[i + 1] > key[i];  // neighbours only: equal keys stay in the order of experts
      exchange(swap, key[i], key[i + 1]);
      exchange(swap, s[i], s[i + 1]);
      exchange(swap, id[i], id[i + 1]);
    }
  }
  int own_id = 0;
  float own = 0.0f;
  for (int k = 0; k < K; k++) {
    const unsigned top = __reduce_max_sync(FULL, key[0]);
    const unsigned heads = __ballot_sync(FULL, key[0] == top);
    int from = __ffs(heads) - 1;
    if ((heads & (heads - 1)) != 0) {
      from = __reduce_min_sync(FULL, key[0] == top ? id[0] : 0x7fffffff) % 32;
    }
    const int winner = __shfl_sync(FULL, id[0], from);
    const float w = __shfl_sync(FULL, s[0], from);
    if (lane == k) {
      own_id = winner;
      own = w;
    }
    const bool mine = lane == from;
#pragma unroll
    for (int i = 0; i + 1 < N; i++) {
      key[i] = mine ? key[i + 1] : key[i];
      s[i] = mine ? s[i + 1] : s[i];
      id[i] = mine ? id[i + 1] : id[i];
    }
    key[N - 1] = mine ? TAKEN : key[N - 1];
  }
  if (scoring == SOFTMAX_TOPK) {
    const float m = __shfl_sync(FULL, own, 0);
    own = lane < K ? expf(own - m) : 0.0f;
    own /= warp_sum(own);
  }
  float divisor = 1.0f;
  if (renormalize) {
    divisor = warp_sum(lane < K ? own : 0.0f) + epsilon;
  }
  if (lane < K) {
    ids[lane] = own_id;
    weights[lane] = own / divisor * scale;
  }
}

}  // namespace moe
