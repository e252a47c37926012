// Input on its way before the kernel in front has finished.
#pragma once

// Brings memory near that may be older than the kernel before this one; what that kernel still writes is in the second cache anyway,
// and is read there after the wait. `address` and `bytes` are multiples of 16. A hint: nothing depends on it.
__device__ __forceinline__ void bring_near(const void* address, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "r"(bytes) : "memory");
#endif
}

// The same for the line that holds one address of any alignment.
__device__ __forceinline__ void bring_line_near(const void* address) { asm volatile("prefetch.global.L2 [%0];" ::"l"(address)); }

// Lets the kernel behind this one be scheduled, which waits for the end of this one all the same.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// A load past the first cache, which may still hold what stood there before a kernel that this one did not wait for. Aligned to its size.
template <class V> __device__ __forceinline__ V load_far(const void* address) {
  V v;
  if constexpr (sizeof(V) % 16 == 0) {
    uint4* to = reinterpret_cast<uint4*>(&v);
#pragma unroll
    for (int i = 0; i < (int)(sizeof(V) / 16); i++) to[i] = __ldcg(static_cast<const uint4*>(address) + i);
  } else if constexpr (sizeof(V) == 4) {
    *reinterpret_cast<unsigned*>(&v) = __ldcg(static_cast<const unsigned*>(address));
  } else {
    static_assert(sizeof(V) == 2, "no load of this size");
    *reinterpret_cast<unsigned short*>(&v) = __ldcg(static_cast<const unsigned short*>(address));
  }
  return v;
}
