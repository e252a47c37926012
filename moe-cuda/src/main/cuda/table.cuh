// What kernels with LoRA in them share: the columns of the slot table (table.py explains them) and the order between dependent launches.
#pragma once
#include <stdint.h>

constexpr unsigned FULL = 0xffffffffu;

constexpr int SLOT_WIDTH = 24;
constexpr int LIVE = 0;
constexpr int PAGES13 = 1;
constexpr int PAGES2 = 2;
constexpr int SHARED_A = 3;
constexpr int B_ADDR = 7;     // +0 first, +1 second, +2 down; likewise below
constexpr int B_EXPERT = 13;
constexpr int B_ROW = 16;
constexpr int RANK = 19;
constexpr int DOWN = 2;

__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
