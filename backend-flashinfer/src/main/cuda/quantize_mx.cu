// Hidden states to MXFP8 (OCP Microscaling Formats v1.0), as FlashInfer's experts on Blackwell want them: 32 elements share a scale, the
// largest magnitude over 448 rounded up to a power of two, of which the exponent byte is stored; q = e4m3(x / scale), to the nearest,
// ties to even.
#include <cuda_fp8.h>

#include <cstdint>

#include "common.cuh"

using namespace moe;

// Eight threads take a group, four elements each. `n` is a multiple of 32, so that a group's threads go round together.
template <typename T>
__device__ void quantize(const T* in, uint8_t* out, uint8_t* scales, long long n) {
  wait_for_predecessor();
  const long long step = 4LL * gridDim.x * blockDim.x;
  const unsigned group = 0xFFu << (threadIdx.x & 24);
  for (long long i = 4LL * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += step) {
    float v[4], most = 0;
    for (int j = 0; j < 4; j++) {
      v[j] = to_float(in[i + j]);
      most = fmaxf(most, fabsf(v[j]));
    }
    for (int lane = 4; lane > 0; lane /= 2) most = fmaxf(most, __shfl_xor_sync(group, most, lane));
    const uint32_t bits = __float_as_uint(most / 448.f);
    const uint32_t exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0);
    // 2^(127 - exponent) in two factors: one alone has no normal number for the largest exponents.
    const float half = __uint_as_float((uint32_t)(127 + (127 - (int)exponent) / 2) << 23);
    const float rest = __uint_as_float((uint32_t)(127 + (127 - (int)exponent) - (127 - (int)exponent) / 2) << 23);
    __nv_fp8_e4m3 q[4];
    for (int j = 0; j < 4; j++) q[j] = __nv_fp8_e4m3(most == 0 ? v[j] : v[j] * half * rest);
    *reinterpret_cast<uint32_t*>(out + i) = *reinterpret_cast<uint32_t*>(q);
    if (threadIdx.x % 8 == 0) scales[i / 32] = (uint8_t)exponent;
  }
}

#define KERNEL(name, T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) name(const T* in, uint8_t* out, uint8_t* scales, long long n) {        \
    quantize(in, out, scales, n);                                                                                          \
  }

KERNEL(flashinfer_quantize_mx_f32, float)
KERNEL(flashinfer_quantize_mx_bf16, bf16)
KERNEL(flashinfer_quantize_mx_f16, f16)
