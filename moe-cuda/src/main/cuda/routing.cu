// Router logits to topk ids and weights, all in f32. One warp per token; the scores lie in shared memory.
#include "common.cuh"
#include "topk.cuh"

namespace moe {

constexpr int WARPS = 4;

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

// A warp a token, by topk_token.
template <int N>
__device__ __forceinline__ void topk_flat(const float* __restrict__ logits, const float* __restrict__ bias, int* __restrict__ ids,
                                          float* __restrict__ weights, int T, int E, int K, int scoring, int renormalize,
                                          float epsilon, float scale) {
  const int lane = threadIdx.x % 32;
  const int t = blockIdx.x * WARPS + threadIdx.x / 32;
  const float* z = logits + (size_t)t * E;
  // Brings logits that are older than the kernel before this one near; newer ones are in the second cache anyway.
  if (t < T && 32 * lane < E) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(z + 32 * lane));
  }
  wait_for_predecessor();
  if (t < T) {
    topk_token<N>(z, bias, ids + (size_t)t * K, weights + (size_t)t * K, E, K, scoring, renormalize, epsilon, scale);
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
