// Hidden states to NVFP4, as FlashInfer's experts on Blackwell want them: 16 elements share an E4M3 scale, the largest magnitude over 6
// and over the given scale, to the nearest; q = e2m1(x / (scale * given)), to the nearest, ties to even codes, too large becomes 6. Where
// the group's scale is zero, so are its codes. E2M1 has no NaN, E4M3 has: a NaN makes its group's scale NaN, so that it is not lost.
#include <cuda_fp8.h>

#include <cstdint>

#include "common.cuh"

using namespace moe;

// 0, 0.5, 1, 1.5, 2, 3, 4, 6: the code of a magnitude, to the nearest, ties to even codes.
__device__ __forceinline__ uint32_t e2m1(float v) {
  const float a = fabsf(v);
  const uint32_t code = a <= 0.25f ? 0 : a < 0.75f ? 1 : a <= 1.25f ? 2 : a < 1.75f ? 3 : a <= 2.5f ? 4 : a < 3.5f ? 5 : a <= 5.f ? 6 : 7;
  return code | (__float_as_uint(v) >> 31) << 3;
}

// Four threads take a group, four elements each. `n` is a multiple of 16, so that a group's threads go round together.
template <typename T>
__device__ void quantize(const T* in, uint8_t* out, uint8_t* scales, const float* given, long long n) {
  wait_for_predecessor();
  const float global = *given;
  const long long step = 4LL * gridDim.x * blockDim.x;
  const unsigned group = 0xFu << (threadIdx.x & 28);
  for (long long i = 4LL * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += step) {
    float v[4];
    uint32_t most = 0;  // of magnitudes, whose bits are in their order, NaN's above all
    for (int j = 0; j < 4; j++) {
      v[j] = to_float(in[i + j]);
      most = max(most, __float_as_uint(v[j]) & 0x7FFFFFFFu);
    }
    for (int lane = 2; lane > 0; lane /= 2) most = max(most, __shfl_xor_sync(group, most, lane));
    const __nv_fp8_e4m3 own(__uint_as_float(most) / 6.f / global);
    const float s = (float)own * global;
    uint32_t q = 0;
    for (int j = 0; j < 4; j++) q |= (s > 0 ? e2m1(v[j] / s) : 0) << 4 * j;
    *reinterpret_cast<uint16_t*>(out + i / 2) = (uint16_t)q;
    if (threadIdx.x % 4 == 0) scales[i / 16] = own.__x;
  }
}

#define KERNEL(name, T)                                                                                                             \
  extern "C" __global__ void __launch_bounds__(256) name(const T* in, uint8_t* out, uint8_t* scales, const float* given, long long n) { \
    quantize(in, out, scales, given, n);                                                                                            \
  }

KERNEL(flashinfer_quantize_nv_f32, float)
KERNEL(flashinfer_quantize_nv_bf16, bf16)
KERNEL(flashinfer_quantize_nv_f16, f16)
