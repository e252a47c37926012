// What every kernel here shares: element types, ordering between dependent launches, expert lookup.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace moe {

using bf16 = __nv_bfloat16;
using f16 = __half;

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }

template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ __forceinline__ f16 from_float<f16>(float v) { return __float2half_rn(v); }

// N elements that are loaded and stored at once.
template <class T, int N> struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// With programmatic dependent launch a kernel starts before its predecessor has finished: nothing may be read or written
// before this returns. The successor may be scheduled from here on; it waits in the same way.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Global expert id to local expert; -1 for no expert, one on another rank, or an id that does not exist.
__device__ __forceinline__ int local_expert(int id, const int* map, int num_global, int num_local) {
  if (map != nullptr) {
    id = (unsigned)id < (unsigned)num_global ? map[id] : -1;
  }
  return (unsigned)id < (unsigned)num_local ? id : -1;
}

}  // namespace moe
