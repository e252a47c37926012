// The machine instructions that the kernels are made of, one name each. With -DEMU they come from src/test/cuda/emu.h instead, which runs
// a kernel's threads on the host: a test needs no card.
#pragma once
#ifdef EMU
#include "emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define DEV __device__ __forceinline__
#define BOTH __host__ __device__ constexpr
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
#define SHARED(name) extern __shared__ __align__(1024) uint8_t name[]

struct Bf16 {};
struct F16 {};

DEV uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
DEV void block_sync() { __syncthreads(); }
DEV void warp_sync() { __syncwarp(); }
DEV uint32_t lanes_with(bool v) { return __ballot_sync(0xffffffffu, v); }
DEV bool any_lane(bool v) { return __any_sync(0xffffffffu, v); }

// Into shared memory, in the background. Sixteen bytes go past the first cache.
DEV void copy16(uint32_t to, const void* from) { asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory"); }
DEV void copy16_or_zero(uint32_t to, const void* from, bool some) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(some ? 16 : 0) : "memory");
}
template <int BYTES>
DEV void copy_words(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(BYTES) : "memory");
}
template <int BYTES>
DEV void copy_words_or_zero(uint32_t to, const void* from, bool some) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(some ? BYTES : 0) : "memory");
}
DEV void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
DEV void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

DEV uint4 shared16(uint32_t p) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p) : "memory");
  return v;
}
DEV uint2 shared8(uint32_t p) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(p) : "memory");
  return v;
}
DEV uint32_t shared4(uint32_t p) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(p) : "memory");
  return v;
}
DEV float4 shared_floats(uint32_t p) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(p) : "memory");
  return v;
}
// Four 8 x 8 matrices of 16-bit elements; lane l names row l % 8 of matrix l / 8.
DEV void load_matrices(uint32_t* r, uint32_t p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(p) : "memory");
}
// What an earlier kernel of this forward wrote: volatile keeps the load behind the wait for it.
DEV uint32_t load_new4(const void* p) {
  uint32_t v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
DEV uint4 load_new16(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}

// What no kernel of this forward writes.
DEV uint32_t load_constant4(const void* p) {
  uint32_t v;
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}
// The same, and its neighbours into the L2 cache. Where `some` is false, v stays: in its register, so that nothing waits.
DEV void load_constant4(uint32_t& v, const void* p, bool some) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %2, 0;\n@p ld.global.nc.L2::256B.u32 %0, [%1];\n}" : "+r"(v) : "l"(p), "r"((int)some));
}
// The same in all lanes, and the compiler knows: it is kept in a uniform register.
DEV uint32_t uniform(uint32_t v) { return __reduce_or_sync(0xffffffffu, v); }

template <int THREADS>
DEV void some_sync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(THREADS) : "memory");
}
// Four 8 x 8 matrices of 16-bit elements, turned over: lane l names where column l % 8 of matrix l / 8 goes.
DEV void store_matrices_turned(uint32_t p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(p), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}

template <class T>
DEV void multiply(float* c, const uint32_t* a, uint32_t b0, uint32_t b1);
template <>
DEV void multiply<Bf16>(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEV void multiply<F16>(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Pairs of 16-bit floats.
template <class T>
DEV uint32_t fma2(uint32_t a, uint32_t b, uint32_t c);
template <>
DEV uint32_t fma2<Bf16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <>
DEV uint32_t fma2<F16>(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
template <class T>
DEV uint32_t pack2(float low, float high);
template <>
DEV uint32_t pack2<Bf16>(float low, float high) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
template <>
DEV uint32_t pack2<F16>(float low, float high) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
  return d;
}
DEV float half_float(uint16_t v) { return __half2float(__ushort_as_half(v)); }
DEV uint16_t float_half(float v) { return __half_as_ushort(__float2half_rn(v)); }
DEV uint32_t permute(uint32_t a, uint32_t b, uint32_t how) { return __byte_perm(a, b, how); }
// (v & mask) | more in one instruction, which may have one immediate: the compiler makes two of it where both are known.
DEV uint32_t mask_or(uint32_t v, uint32_t mask, uint32_t more) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(v), "r"(mask), "r"(more));
  return d;
}
// Keeps the compiler from taking a pointer apart again.
template <class A>
DEV void whole(A*& p) {
  asm volatile("" : "+l"(p));
}
// The value is in this register here.
DEV void here(float& v) { asm volatile("" : "+f"(v)::"memory"); }
DEV float quick_exp2(float v) {
  float d;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(v));
  return d;
}
DEV float quick_reciprocal(float v) {
  float d;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(v));
  return d;
}
DEV float bits_float(uint32_t v) { return __uint_as_float(v); }
DEV uint32_t float_bits(float v) { return __float_as_uint(v); }

DEV void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
DEV void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif

template <class T>
DEV uint16_t round_to(float v) {
  return (uint16_t)pack2<T>(v, 0.0f);
}
