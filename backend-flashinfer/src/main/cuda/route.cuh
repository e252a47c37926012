// A layer's routing by the first warps of each block, a token each, while the block's other warps make the experts' input: neither needs
// the other, and alone the first waits for latencies while the second waits for memory. At least T / 4 blocks.
#pragma once
#include "common.cuh"
#include "near.cuh"
#include "topk.cuh"

constexpr int ROUTING_WARPS = 4;
constexpr int ROUTING_THREADS = ROUTING_WARPS * 32;

__device__ __forceinline__ long long routed_token() { return (long long)blockIdx.x * ROUTING_WARPS + threadIdx.x / 32; }

// Before the wait for the kernel in front.
__device__ __forceinline__ void bring_logits_near(const float* logits, int T, int E) {
  constexpr int LINE = 32;
  const int first = threadIdx.x % 32 * LINE;
  if (threadIdx.x < ROUTING_THREADS && routed_token() < T && first < E) {
    bring_line_near(logits + routed_token() * E + first);
  }
}

// logits [T, E] -> ids [T, K], weights [T, K], E at most 128; called by the routing warps, after the wait.
__device__ __forceinline__ void route(const float* logits, int* ids, float* weights, int T, int E, int K, int scoring, int renormalize,
                                      float epsilon, float factor) {
  const long long t = routed_token();
  if (t < T) {
    moe::topk_token<4>(logits + t * E, nullptr, ids + t * K, weights + t * K, E, K, scoring, renormalize, epsilon, factor);
  }
}
