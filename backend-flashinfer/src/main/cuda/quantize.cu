// Hidden states to e4m3 with one given scale, as FlashInfer's FP8 experts want them: q = e4m3(x / scale), to the nearest,
// ties to even, too large becomes the largest, NaN stays NaN.
#include <cuda_fp8.h>

#include <cstdint>

#include "common.cuh"
#include "near.cuh"

using namespace moe;

constexpr int AT_ONCE = 8;

// A quotient by one divisor again and again, rounded once as the division is: a product with the reciprocal, and what it lacks (Markstein's
// correction, exact while nothing under- or overflows). Quotients far beyond e4m3's largest number need no correction, and have none where
// they overflow. A divisor of unusual size divides.
struct Divisor {
  float value, reciprocal;
  bool usual;

  __device__ explicit Divisor(float v) : value(v), reciprocal(1.f / v), usual(v > 0x1p-60f && v < 0x1p60f) {}

  __device__ __forceinline__ float divide(float x) const {
    const float q = x * reciprocal;
    const float exact = copysignf(fmaf(fmaf(-q, value, x), reciprocal, q), q);  // keeps the sign of zero
    return fabsf(q) < 1024.f ? exact : q;
  }
};

// Eight elements at a time where the addresses allow that: 16 bytes of 16-bit elements are one load, eight codes one store.
// `early`: this has nothing to do with the kernel in front, which waited before anything else, so that all in front of that is done and
// its results are in the second cache: read there, not in the first, and wait at the end, for those who wait for this.
template <typename T>
__device__ void quantize(const T* in, uint8_t* out, const float* scale, long long n, int early) {
  using In = Pack<T, AT_ONCE>;
  const bool aligned =
      reinterpret_cast<uintptr_t>(in) % (sizeof(T) * AT_ONCE) == 0 && reinterpret_cast<uintptr_t>(out) % AT_ONCE == 0;
  const long long block = (long long)AT_ONCE * blockDim.x;
  const long long step = block * gridDim.x;
  if (early) {
    let_successor_start();
  } else {
    if (aligned && threadIdx.x == 0) {
      for (long long i = blockIdx.x * block; i < n; i += step) {
        bring_near(in + i, (unsigned)((n - i < block ? n - i : block) * sizeof(T)) & ~15u);
      }
    }
    wait_for_predecessor();
  }
  const Divisor s(__ldcg(scale));
  for (long long i = AT_ONCE * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += step) {
    if (aligned && s.usual && i + AT_ONCE <= n) {
      const In x = load_far<In>(in + i);
      Pack<__nv_fp8x2_e4m3, AT_ONCE / 2> q;
#pragma unroll
      for (int j = 0; j < AT_ONCE / 2; j++) {
        q.v[j] = __nv_fp8x2_e4m3(make_float2(s.divide(to_float(x.v[2 * j])), s.divide(to_float(x.v[2 * j + 1]))));
      }
      *reinterpret_cast<decltype(q)*>(out + i) = q;
    } else {
      for (long long j = i; j < n && j < i + AT_ONCE; j++) {
        out[j] = __nv_fp8_e4m3(to_float(load_far<T>(in + j)) / s.value).__x;
      }
    }
  }
  if (early) {
    wait_for_predecessor();
  }
}

#define KERNEL(name, T)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) name(const T* in, uint8_t* out, const float* scale, long long n, int early) { \
    quantize(in, out, scale, n, early);                                                                                    \
  }

KERNEL(flashinfer_quantize_f32, float)
KERNEL(flashinfer_quantize_bf16, bf16)
KERNEL(flashinfer_quantize_f16, f16)
