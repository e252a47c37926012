// Router logits to topk ids and weights, all in f32. One warp per token; the scores lie in shared memory.
#include "common.cuh"

namespace moe {

enum Scoring { SOFTMAX = 0, SOFTMAX_TOPK = 1, SIGMOID = 2, SQRT_SOFTPLUS = 3, SPARSE_MIXER = 4 };

constexpr int WARPS = 4;
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

// The entry with the largest key, ties by the lowest index; marks it as taken.
__device__ __forceinline__ int take_best(unsigned* key, int n, int lane) {
  unsigned best = 0;
  int at = lane;
  for (int i = lane; i < n; i += 32) {
    unsigned k = key[i];
    if (k > best) {
      best = k;
      at = i;
    }
  }
  unsigned top = __reduce_max_sync(FULL, best);
  int winner = __reduce_min_sync(FULL, best == top ? at : 0x7fffffff);
  if (lane == 0) {
    key[winner] = TAKEN;
  }
  __syncwarp();
  return winner;
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

// One token by a warp, without groups and up to 32 N experts, in registers: a lane has experts lane + 32 i and sorts them, so that a round is
// one reduction over the lanes' best and a vote, and the winner's lane goes on to its next. Same choice as moe_topk, ties by the lower expert.
template <int N>
__device__ __forceinline__ void topk_of(const float* __restrict__ z, const float* __restrict__ bias, int* __restrict__ ids,
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

// A warp goes from token to token, so that a large batch leaves room on the card for what is launched behind it.
template <int N>
__device__ __forceinline__ void topk_flat(const float* __restrict__ logits, const float* __restrict__ bias, int* __restrict__ ids,
                                          float* __restrict__ weights, int T, int E, int K, int scoring, int renormalize,
                                          float epsilon, float scale) {
  const int first = blockIdx.x * WARPS + threadIdx.x / 32;
  const int step = gridDim.x * WARPS;
  const int part = 32 * (threadIdx.x % 32);
  // Brings logits that are older than the kernel before this one near; newer ones are in the second cache anyway.
  for (int t = first; t < T && part < E; t += step) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(logits + (size_t)t * E + part));
  }
  wait_for_predecessor();
  for (int t = first; t < T; t += step) {
    topk_of<N>(logits + (size_t)t * E, bias, ids + (size_t)t * K, weights + (size_t)t * K, E, K, scoring, renormalize, epsilon, scale);
  }
}

}  // namespace moe

using namespace moe;

// Like moe_topk, for up to 32 N experts, K <= 32, no groups, every scoring but SPARSE_MIXER.
#define MOE_TOPK_FLAT(N)                                                                                                  \
  extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                                \
      moe_topk_flat_##N(const float* __restrict__ logits, const float* __restrict__ bias, int* __restrict__ ids,          \
                        float* __restrict__ weights, int T, int E, int K, int scoring, int renormalize, float epsilon,    \
                        float scale) {                                                                                    \
    topk_flat<N>(logits, bias, ids, weights, T, E, K, scoring, renormalize, epsilon, scale);                              \
  }

MOE_TOPK_FLAT(1)
MOE_TOPK_FLAT(4)
MOE_TOPK_FLAT(8)
MOE_TOPK_FLAT(16)

// logits [T, E], bias [E] or null -> ids [T, K], weights [T, K].
// Dynamic shared memory: WARPS * (2 E + 2 K + G) words.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    moe_topk(const float* __restrict__ logits, const float* __restrict__ bias, int* __restrict__ ids,
             float* __restrict__ weights, int T, int E, int K, int scoring, int renormalize, float epsilon, float scale,
             int groups, int topk_groups, int sum_of_top2, float jitter) {
  extern __shared__ float shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int t = blockIdx.x * WARPS + warp;
  wait_for_predecessor();
  if (t >= T) {
    return;
  }
  float* s = shared + warp * (2 * E + 2 * K + groups);
  unsigned* key = reinterpret_cast<unsigned*>(s + E);
  float* chosen = s + 2 * E;
  int* chosen_id = reinterpret_cast<int*>(chosen + K);
  unsigned* group_key = reinterpret_cast<unsigned*>(chosen_id + K);
  const float* z = logits + (size_t)t * E;

  if (scoring == SOFTMAX) {
    float m = -INFINITY;
    for (int e = lane; e < E; e += 32) {
      s[e] = z[e];
      m = fmaxf(m, s[e]);
    }
    m = warp_max(m);
    float sum = 0.0f;
    for (int e = lane; e < E; e += 32) {
      s[e] = expf(s[e] - m);
      sum += s[e];
    }
    sum = warp_sum(sum);
    for (int e = lane; e < E; e += 32) {
      s[e] = s[e] / sum;
    }
  } else {
    for (int e = lane; e < E; e += 32) {
      s[e] = score(z[e], scoring);
    }
  }
  for (int e = lane; e < E; e += 32) {
    key[e] = order_key(bias == nullptr ? s[e] : s[e] + bias[e]);
  }
  __syncwarp();

  if (groups > 1) {
    const int size = E / groups;
    for (int g = lane; g < groups; g += 32) {
      float first = -INFINITY;
      float second = -INFINITY;
      for (int i = 0; i < size; i++) {
        float c = s[g * size + i] + (bias == nullptr ? 0.0f : bias[g * size + i]);
        if (c > first) {
          second = first;
          first = c;
        } else if (c > second) {
          second = c;
        }
      }
      group_key[g] = order_key(sum_of_top2 ? first + second : first);
    }
    __syncwarp();
    // Taken groups are the ones that stay.
    for (int j = 0; j < topk_groups; j++) {
      take_best(group_key, groups, lane);
    }
    for (int e = lane; e < E; e += 32) {
      if (group_key[e / size] != TAKEN) {
        key[e] = TAKEN;
      }
    }
    __syncwarp();
  }

  for (int k = 0; k < K; k++) {
    if (scoring == SPARSE_MIXER) {
      float m = -INFINITY;
      for (int e = lane; e < E; e += 32) {
        m = key[e] == TAKEN ? m : fmaxf(m, s[e]);
      }
      m = warp_max(m);
      float sum = 0.0f;
      for (int e = lane; e < E; e += 32) {
        bool masked = key[e] == TAKEN || (m - s[e]) / fmaxf(fabsf(s[e]), m) > 2.0f * jitter;
        sum += masked ? 0.0f : expf(s[e] - m);
      }
      sum = warp_sum(sum);
      __syncwarp();
      int e = take_best(key, E, lane);
      if (lane == 0) {
        chosen_id[k] = e;
        chosen[k] = expf(s[e] - m) / sum;
      }
    } else {
      int e = take_best(key, E, lane);
      if (lane == 0) {
        chosen_id[k] = e;
        chosen[k] = s[e];
      }
    }
  }
  __syncwarp();

  if (scoring == SOFTMAX_TOPK) {
    float m = chosen[0];
    __syncwarp();
    float sum = 0.0f;
    for (int k = lane; k < K; k += 32) {
      chosen[k] = expf(chosen[k] - m);
      sum += chosen[k];
    }
    sum = warp_sum(sum);
    for (int k = lane; k < K; k += 32) {
      chosen[k] /= sum;
    }
  }
  float divisor = 1.0f;
  if (renormalize) {
    float sum = 0.0f;
    for (int k = lane; k < K; k += 32) {
      sum += chosen[k];
    }
    divisor = warp_sum(sum) + epsilon;
  }
  for (int k = lane; k < K; k += 32) {
    ids[(size_t)t * K + k] = chosen_id[k];
    weights[(size_t)t * K + k] = chosen[k] / divisor * scale;
  }
}
