// Hidden states to e4m3 with a scale for 128 elements of a row, as FlashInfer's FP8 experts in blocks want them on Blackwell: the scale
// is the largest magnitude over 448 (1 where all are zero), q = e4m3(x / scale), to the nearest, ties to even. Scales of one group of all
// tokens stand together.
#include <cuda_fp8.h>

#include <cstdint>

#include "common.cuh"

using namespace moe;

// A warp takes a group, four elements a thread. `width` is a multiple of 128, so that a group's threads go round together.
template <typename T>
__device__ void quantize(const T* in, uint8_t* out, float* scales, long long n, int tokens, int width) {
  wait_for_predecessor();
  const long long step = 4LL * gridDim.x * blockDim.x;
  for (long long i = 4LL * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += step) {
    float v[4], most = 0;
    for (int j = 0; j < 4; j++) {
      v[j] = to_float(in[i + j]);
      most = fmaxf(most, fabsf(v[j]));
    }
    for (int lane = 16; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, lane));
    const float s = most == 0 ? 1 : most / 448.f;
    __nv_fp8_e4m3 q[4];
    for (int j = 0; j < 4; j++) q[j] = __nv_fp8_e4m3(v[j] / s);
    *reinterpret_cast<uint32_t*>(out + i) = *reinterpret_cast<uint32_t*>(q);
    if (threadIdx.x % 32 == 0) scales[i % width / 128 * tokens + i / width] = s;
  }
}

#define KERNEL(name, T)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256)                                                                       \
      name(const T* in, uint8_t* out, float* scales, long long n, int tokens, int width) {                                \
    quantize(in, out, scales, n, tokens, width);                                                                          \
  }

KERNEL(flashinfer_quantize_blocks_f32, float)
KERNEL(flashinfer_quantize_blocks_bf16, bf16)
KERNEL(flashinfer_quantize_blocks_f16, f16)
