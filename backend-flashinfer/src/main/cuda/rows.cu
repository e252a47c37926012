// Rows of 16-bit elements around FlashInfer's TRTLLM experts: padded and cut, their halves exchanged, fetched from the order of the
// experts into the order of the pairs, or zeroed. An output row is `blocks` blocks of `out_width` elements; the input's blocks are
// `in_width` wide. Where the input's block is narrower, zeros follow; where it is wider, the rest is left out.
#include <cstdint>

#include "common.cuh"
#include "near.cuh"

// `map`: the input's row for each output row, -1 = zeros; null = the same row. `in`: null = zeros everywhere. `swap`: the first block
// comes from the last of the input. `early`: as in quantize.cu.
template <typename V>
__device__ void rows(const V* in, const int* map, V* out, int blocks, int in_width, int out_width, int swap, int early) {
  const int r = blockIdx.x;
  if (early) {
    let_successor_start();
  } else {
    // Only whole packs: a single element need not stand where a hint may.
    if (sizeof(V) == 16 && in != nullptr && map == nullptr && threadIdx.x == 0) {
      bring_near(in + (long long)r * blocks * in_width, blocks * in_width * sizeof(V));
    }
    moe::wait_for_predecessor();
  }
  const int from = in == nullptr ? -1 : map == nullptr ? r : map[r];
  const int width = blocks * out_width;
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    const int b = c / out_width, x = c - b * out_width;
    V v{};
    if (from >= 0 && x < in_width) v = load_far<V>(in + ((long long)from * blocks + (swap ? blocks - 1 - b : b)) * in_width + x);
    out[(long long)r * width + c] = v;
  }
  if (early) {
    moe::wait_for_predecessor();
  }
}

#define KERNEL(name, V)                                                                                                        \
  extern "C" __global__ void __launch_bounds__(256)                                                                            \
      name(const V* in, const int* map, V* out, int blocks, int in_width, int out_width, int swap, int early) {                \
    rows(in, map, out, blocks, in_width, out_width, swap, early);                                                                \
  }

KERNEL(flashinfer_rows_1, uint16_t)
KERNEL(flashinfer_rows_8, uint4)
