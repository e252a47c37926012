// A layer's routing and the input of FlashInfer's experts whose width is padded, in one launch.
#include <cstdint>

#include "route.cuh"

using namespace moe;

constexpr int LANES = 128;  // that copy
constexpr int PACK = 8;     // elements of 16 bits
constexpr int IN_FLIGHT = 4;

// Routes as in route.cuh; in [T, in_width] -> out [T, out_width], 16-bit elements, zeros behind a row. Both widths are multiples of 8, both
// addresses of 16 bytes, out_width >= in_width, T * out_width / 8 < 2^31.
extern "C" __global__ void __launch_bounds__(ROUTING_THREADS + LANES)
    flashinfer_route_rows(const float* __restrict__ logits, int* __restrict__ ids, float* __restrict__ weights, int T, int E, int K,
                          int scoring, int renormalize, float epsilon, float factor, const uint16_t* __restrict__ in,
                          uint16_t* __restrict__ out, int in_width, int out_width) {
  // FlashInfer's first kernel waits for the end of this one, so it may be scheduled at once.
  let_successor_start();
  bring_logits_near(logits, T, E);
  const unsigned in_packs = in_width / PACK;
  const unsigned out_packs = out_width / PACK;
  const unsigned n = T * out_packs;
  const unsigned step = gridDim.x * LANES;
  const unsigned begin = blockIdx.x * LANES + threadIdx.x - ROUTING_THREADS;  // of the copying warps
  const uint4* from = reinterpret_cast<const uint4*>(in);
  if (threadIdx.x >= ROUTING_THREADS && begin < n && begin % out_packs < in_packs) {
    bring_line_near(from + (size_t)(begin / out_packs) * in_packs + begin % out_packs);
  }
  wait_for_predecessor();
  if (threadIdx.x < ROUTING_THREADS) {
    route(logits, ids, weights, T, E, K, scoring, renormalize, epsilon, factor);
    return;
  }
  for (unsigned at = begin; at < n; at += step * IN_FLIGHT) {
    uint4 v[IN_FLIGHT];
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      const unsigned i = at + u * step;
      const unsigned row = i / out_packs;
      const unsigned c = i - row * out_packs;
      v[u] = i < n && c < in_packs ? load_far<uint4>(from + (size_t)row * in_packs + c) : uint4{};
    }
#pragma unroll
    for (int u = 0; u < IN_FLIGHT; u++) {
      if (at + u * step < n) {
        reinterpret_cast<uint4*>(out)[at + u * step] = v[u];
      }
    }
  }
}
