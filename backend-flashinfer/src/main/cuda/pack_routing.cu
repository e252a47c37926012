// A token's experts as one of FlashInfer's functions takes them: the id above the bits of its weight in bf16.
#include <cstdint>

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256) flashinfer_pack_routing(const int* ids, const float* weights, uint32_t* out, long long n) {
  moe::wait_for_predecessor();
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += (long long)gridDim.x * blockDim.x) {
    const moe::bf16 w = __float2bfloat16_rn(weights[i]);
    out[i] = (uint32_t)ids[i] << 16 | __bfloat16_as_ushort(w);
  }
}
