// Input on its way before the kernel in front has finished.
#pragma once

// Brings memory near that may be older than the kernel before this one; what that kernel still writes is in the second cache anyway,
// and is read there after the wait. `address` and `bytes` are multiples of 16. A hint: nothing depends on it.
__device__ __forceinline__ void bring_near(const void* address, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(address)), "r"(bytes) : "memory");
#endif
}
