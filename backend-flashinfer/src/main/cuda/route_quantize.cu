// A layer's routing and the input of FlashInfer's FP8 experts in one launch.
#include <cuda_fp8.h>

#include <cstdint>

#include "route.cuh"

using namespace moe;

constexpr int LANES = 128;  // that quantise
constexpr int AT_ONCE = 8;
constexpr int IN_FLIGHT = 4;

// e4m3(x / s) without a division: r is 1 / s, and a step of Newton's makes the quotient the nearest one (Markstein) where neither r nor the
// remainder is subnormal, which 2^-60 <= s <= 2^60 keeps for every x whose code is not zero. Far beyond the largest code x is cut, so that
// nothing becomes infinite on the way; NaN stays.
struct Quotient {
  float s, r, most;
  __device__ explicit Quotient(float scale) : s(scale), r(1.0f / scale), most(1000.0f * scale) {}
  __device__ float operator()(float x) const {
    x = x > most ? most : x;
    x = x < -most ? -most : x;
    const float q = x * r;
    return copysignf(fmaf(fmaf(-q, s, x), r, q), x);  // of -0, too
  }
};

// Routes as in route.cuh; in [n] -> out [n] as in quantize.cu. n is a multiple of 8, the addresses are of 16 and 8 bytes, scale is 2^-60 to
// 2^60.
extern "C" __global__ void __launch_bounds__(ROUTING_THREADS + LANES)
    flashinfer_route_quantize(const float* __restrict__ logits, int* __restrict__ ids, float* __restrict__ weights, int T, int E, int K,
                              int scoring, int renormalize, float epsilon, float factor, const bf16* __restrict__ in,
                              uint8_t* __restrict__ out, const float* __restrict__ scale, long long n) {
  constexpr long long ROUND = (long long)AT_ONCE * LANES;
  constexpr long long BLOCK = ROUND * IN_FLIGHT;
  // FlashInfer's first kernel waits for the end of this one, so it may be scheduled at once.
  let_successor_start();
  bring_logits_near(logits, T, E);
  if (threadIdx.x == ROUTING_THREADS) {
    bring_line_near(scale);
  }
  if (threadIdx.x == 0) {
    for (long long i = blockIdx.x * BLOCK; i < n; i += gridDim.x * BLOCK) {
      bring_near(in + i, (unsigned)((n - i < BLOCK ? n - i : BLOCK) * sizeof(bf16)));
    }
  }
  wait_for_predecessor();
  if (threadIdx.x < ROUTING_THREADS) {
    route(logits, ids, weights, T, E, K, scoring, renormalize, epsilon, factor);
    return;
  }
  using In = Pack<bf16, AT_ONCE>;
  const Quotient quotient(*scale);
  for (long long at = blockIdx.x * BLOCK + AT_ONCE * (threadIdx.x - ROUTING_THREADS); at < n; at += gridDim.x * BLOCK) {
    In x[IN_FLIGHT];
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      if (at + u * ROUND < n) {
        x[u] = load_far<In>(in + at + u * ROUND);
      }
    }
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      if (at + u * ROUND < n) {
        Pack<__nv_fp8x2_e4m3, AT_ONCE / 2> q;
#pragma unroll
        for (int j = 0; j < AT_ONCE / 2; j++) {
          q.v[j] = __nv_fp8x2_e4m3(make_float2(quotient(to_float(x[u].v[2 * j])), quotient(to_float(x[u].v[2 * j + 1]))));
        }
        *reinterpret_cast<decltype(q)*>(out + at + u * ROUND) = q;
      }
    }
  }
}
