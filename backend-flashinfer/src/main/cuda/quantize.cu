// Hidden states to e4m3 with one given scale, as FlashInfer's FP8 experts want them: q = e4m3(x / scale), to the nearest,
// ties to even, too large becomes the largest, NaN stays NaN.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

template <typename T>
__device__ float wide(T v);
template <>
__device__ float wide(float v) { return v; }
template <>
__device__ float wide(__nv_bfloat16 v) { return __bfloat162float(v); }
template <>
__device__ float wide(__half v) { return __half2float(v); }

// A thread takes four elements at a time: four bytes are one store.
template <typename T>
__device__ void quantize(const T* in, uint8_t* out, const float* scale, long long n) {
  const float s = *scale;
  const long long step = 4LL * gridDim.x * blockDim.x;
  for (long long i = 4LL * (blockIdx.x * (long long)blockDim.x + threadIdx.x); i < n; i += step) {
    if (i + 4 <= n) {
      __nv_fp8_e4m3 q[4];
      for (int j = 0; j < 4; j++) q[j] = __nv_fp8_e4m3(wide(in[i + j]) / s);
      *reinterpret_cast<uint32_t*>(out + i) = *reinterpret_cast<uint32_t*>(q);
    } else {
      for (long long j = i; j < n; j++) out[j] = __nv_fp8_e4m3(wide(in[j]) / s).__x;
    }
  }
}

#define KERNEL(name, T)                                                                                                   \
  extern "C" __global__ void __launch_bounds__(256) name(const T* in, uint8_t* out, const float* scale, long long n) {    \
    quantize(in, out, scale, n);                                                                                          \
  }

KERNEL(flashinfer_quantize_f32, float)
KERNEL(flashinfer_quantize_bf16, __nv_bfloat16)
KERNEL(flashinfer_quantize_f16, __half)
