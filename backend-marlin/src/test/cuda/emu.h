// Runs a kernel's threads on the host, one fiber a thread, with the meaning of the instructions in src/main/cuda/prim.cuh: copies into shared
// memory arrive when they are waited for, not before; a lane that takes no part in a warp's instruction hangs, which is reported.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <ucontext.h>
#include <vector>

#define DEV inline
#define BOTH constexpr
#define KERNEL(threads, blocks) void
#define THREAD emu::thread
#define BLOCK emu::block
#define SHARED(name) uint8_t* name = emu::shared

struct Bf16 {};
struct F16 {};
struct uint4 { uint32_t x, y, z, w; };
struct uint2 { uint32_t x, y; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
template <class A> A min(A a, A b) { return a < b ? a : b; }
template <class A> A max(A a, A b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int b) { return a < b ? a : b; }

namespace emu {
constexpr int SHARED_BYTES = 227 * 1024;
inline int thread, block, threads;
inline uint8_t* shared = (uint8_t*)aligned_alloc(1024, SHARED_BYTES);
struct Copy { uint32_t to; int bytes; uint8_t data[16]; };
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool done;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
struct Group { int size = 0, arrived = 0; long turn = 0; };
inline std::vector<Fiber> fibers;
inline ucontext_t host;
inline Group whole, warps[32], quads[8], named[16];
inline uint32_t deposit[1024][8];
inline long idle;
inline std::function<void()> body;

inline void yield() {
  if (++idle > 4000000) { fprintf(stderr, "the block hangs\n"); exit(2); }
  int me = thread;
  swapcontext(&fibers[me].context, &host);
  thread = me;
}
inline void meet(Group& g, int size) {
  long turn = g.turn;
  if (++g.arrived == size) { g.arrived = 0; g.turn++; idle = 0; }
  else while (g.turn == turn) yield();
}
inline void meet_warp() { meet(warps[thread / 32], 32); }
inline void meet_quad() { meet(quads[thread / 128], 128); }
inline void entry() { body(); fibers[thread].done = true; idle = 0; swapcontext(&fibers[thread].context, &host); }

inline void launch(int blocks, int count, std::function<void()> kernel) {
  threads = count;
  body = kernel;
  for (block = 0; block < blocks; block++) {
    memset(shared, 0xFF, SHARED_BYTES);
    fibers.resize(count);
    whole = Group();
    for (auto& w : warps) w = Group();
    for (auto& w : quads) w = Group();
    for (auto& w : named) w = Group();
    for (int i = 0; i < count; i++) {
      Fiber& f = fibers[i];
      f.stack.resize(64 * 1024);
      f.done = false;
      f.open.clear();
      f.groups.clear();
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.data();
      f.context.uc_stack.ss_size = f.stack.size();
      f.context.uc_link = nullptr;
      makecontext(&f.context, entry, 0);
    }
    for (bool some = true; some;) {
      some = false;
      for (int i = 0; i < count; i++)
        if (!fibers[i].done) {
          some = true;
          thread = i;
          swapcontext(&host, &fibers[i].context);
        }
    }
  }
}
inline void check(uint32_t p, int bytes) {
  if (p + bytes > SHARED_BYTES || p % bytes) { fprintf(stderr, "shared memory at %u, %d bytes\n", p, bytes); exit(2); }
}
inline void copy(uint32_t to, const void* from, int bytes, bool some) {
  check(to, bytes);
  if (some && (uintptr_t)from % bytes) { fprintf(stderr, "a copy of %d bytes from %p\n", bytes, from); exit(2); }
  Copy c{to, bytes, {}};
  if (some) memcpy(c.data, from, bytes);
  fibers[thread].open.push_back(c);
}
inline float bf16(uint16_t v) { uint32_t b = (uint32_t)v << 16; float f; memcpy(&f, &b, 4); return f; }
inline uint16_t to_bf16(float v) { uint32_t b; memcpy(&b, &v, 4); if ((b & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF; return (b + 0x7FFF + (b >> 16 & 1)) >> 16; }
inline float f16(uint16_t v) { _Float16 h; memcpy(&h, &v, 2); return (float)h; }
inline uint16_t to_f16(float v) { _Float16 h = (_Float16)v; uint16_t b; memcpy(&b, &h, 2); return b; }
template <class T> float value(uint16_t v);
template <> inline float value<Bf16>(uint16_t v) { return bf16(v); }
template <> inline float value<F16>(uint16_t v) { return f16(v); }
template <class T> uint16_t code(float v);
template <> inline uint16_t code<Bf16>(float v) { return to_bf16(v); }
template <> inline uint16_t code<F16>(float v) { return to_f16(v); }
}  // namespace emu

inline uint32_t shared_address(const void* p) { return (uint32_t)((const uint8_t*)p - emu::shared); }
inline void block_sync() { emu::meet(emu::whole, emu::threads); }
inline void warp_sync() { emu::meet_warp(); }
inline uint32_t lanes_with(bool v) {
  emu::deposit[THREAD][0] = v;
  emu::meet_warp();
  uint32_t r = 0;
  for (int i = 0; i < 32; i++) r |= (emu::deposit[THREAD / 32 * 32 + i][0] & 1) << i;
  emu::meet_warp();
  return r;
}
inline bool any_lane(bool v) {
  emu::deposit[THREAD][0] = v;
  emu::meet_warp();
  bool r = false;
  for (int i = 0; i < 32; i++) r |= emu::deposit[THREAD / 32 * 32 + i][0] != 0;
  emu::meet_warp();
  return r;
}
inline void copy16(uint32_t to, const void* from) { emu::copy(to, from, 16, true); }
inline void copy16_or_zero(uint32_t to, const void* from, bool some) { emu::copy(to, from, 16, some); }
template <int BYTES> void copy_words(uint32_t to, const void* from) { emu::copy(to, from, BYTES, true); }
template <int BYTES> void copy_words_or_zero(uint32_t to, const void* from, bool some) { emu::copy(to, from, BYTES, some); }
inline void copies_end() { auto& f = emu::fibers[THREAD]; f.groups.push_back(f.open); f.open.clear(); }
template <int N> void copies_wait() {
  auto& f = emu::fibers[THREAD];
  while ((int)f.groups.size() > N) {
    for (auto& c : f.groups.front()) memcpy(emu::shared + c.to, c.data, c.bytes);
    f.groups.pop_front();
  }
}
inline uint4 shared16(uint32_t p) { emu::check(p, 16); return *(uint4*)(emu::shared + p); }
inline float4 shared_floats(uint32_t p) { emu::check(p, 16); return *(float4*)(emu::shared + p); }
inline uint32_t shared4(uint32_t p) { emu::check(p, 4); return *(uint32_t*)(emu::shared + p); }
inline void load_matrices(uint32_t* r, uint32_t p) {
  emu::check(p, 16);
  emu::deposit[THREAD][0] = p;
  emu::meet_warp();
  int lane = THREAD % 32, base = THREAD / 32 * 32;
  for (int m = 0; m < 4; m++) memcpy(&r[m], emu::shared + emu::deposit[base + 8 * m + lane / 4][0] + lane % 4 * 4, 4);
  emu::meet_warp();
}
inline uint32_t load_new4(const void* p) { return *(const uint32_t*)p; }
inline uint32_t load_constant4(const void* p) { return *(const uint32_t*)p; }
inline void load_constant4(uint32_t& v, const void* p, bool some) { if (some) v = *(const uint32_t*)p; }
inline uint32_t uniform(uint32_t v) { return v; }
inline uint4 load_new16(const void* p) { return *(const uint4*)p; }
template <class T> void multiply(float* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  auto d = emu::deposit;
  for (int i = 0; i < 4; i++) d[THREAD][i] = a[i];
  d[THREAD][4] = b0;
  d[THREAD][5] = b1;
  emu::meet_warp();
  int lane = THREAD % 32, base = THREAD / 32 * 32, g = lane / 4, q = lane % 4;
  for (int v = 0; v < 4; v++) {
    int row = g + v / 2 * 8, col = 2 * q + v % 2;
    float sum = 0;
    for (int k = 0; k < 16; k++) {
      uint32_t wa = d[base + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], wb = d[base + col * 4 + k % 8 / 2][4 + k / 8];
      sum += emu::value<T>(k % 2 ? wa >> 16 : wa & 0xFFFF) * emu::value<T>(k % 2 ? wb >> 16 : wb & 0xFFFF);
    }
    c[v] += sum;
  }
  emu::meet_warp();
}
template <class T> uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 2; i++)
    r |= (uint32_t)emu::code<T>((float)((double)emu::value<T>(a >> 16 * i) * emu::value<T>(b >> 16 * i) + emu::value<T>(c >> 16 * i))) << 16 * i;
  return r;
}
template <class T> uint32_t pack2(float low, float high) { return emu::code<T>(low) | (uint32_t)emu::code<T>(high) << 16; }
inline float half_float(uint16_t v) { return emu::f16(v); }
inline uint16_t float_half(float v) { return emu::to_f16(v); }
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t how) {
  uint64_t all = (uint64_t)b << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) r |= (uint32_t)(all >> 8 * (how >> 4 * i & 7) & 0xFF) << 8 * i;
  return r;
}
inline uint32_t mask_or(uint32_t v, uint32_t mask, uint32_t more) { return (v & mask) | more; }
template <class A> void whole(A*&) {}
inline float bits_float(uint32_t v) { float f; memcpy(&f, &v, 4); return f; }
inline uint32_t float_bits(float v) { uint32_t b; memcpy(&b, &v, 4); return b; }
inline void launch_dependents() {}
inline void wait_for_predecessor() {}
template <int THREADS> void some_sync(int id) { emu::meet(emu::named[id], THREADS); }
inline void store_matrices_turned(uint32_t p, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  emu::check(p, 16);
  auto v = emu::deposit;
  v[THREAD][0] = a; v[THREAD][1] = b; v[THREAD][2] = c; v[THREAD][3] = d;
  v[THREAD][4] = p;
  emu::meet_warp();
  int lane = THREAD % 32, base = THREAD / 32 * 32;
  for (int m = 0; m < 4; m++)
    for (int h = 0; h < 2; h++) {
      uint16_t e = v[base + lane][m] >> 16 * h;
      memcpy(emu::shared + v[base + 8 * m + lane % 4 * 2 + h][4] + lane / 4 * 2, &e, 2);
    }
  emu::meet_warp();
}
inline void here(float&) {}
inline float quick_exp2(float v) { return std::exp2(v); }
inline float quick_reciprocal(float v) { return 1.0f / v; }

// wgmma
inline void products_begin() {}
inline void products_end() {}
template <int N> void products_wait() {}
inline void fence_for_products() {}
template <class T, int N>
struct Wgmma {
  static void run(float* c, const uint32_t* a, uint64_t b) {
    auto d = emu::deposit;
    for (int i = 0; i < 4; i++) d[THREAD][i] = a[i];
    emu::meet_quad();
    if ((b >> 62) != 1 || (b >> 32 & 0x3FFF) != 64) { fprintf(stderr, "descriptor %lx\n", (long)b); exit(2); }
    uint32_t start = (b & 0x3FFF) << 4;
    int lane = THREAD % 32, base = THREAD / 32 * 32, g = lane / 4, q = lane % 4;
    for (int j = 0; j < N / 8; j++)
      for (int v = 0; v < 4; v++) {
        int row = g + v / 2 * 8, col = 8 * j + 2 * q + v % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
          uint32_t wa = d[base + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
          uint32_t p = start + col / 8 * 1024 + col % 8 * 128 + k * 2;
          p ^= p >> 3 & 0x70;  // 128-byte swizzle, of the address
          uint16_t vb;
          memcpy(&vb, emu::shared + p, 2);
          sum += emu::value<T>(k % 2 ? wa >> 16 : wa & 0xFFFF) * emu::value<T>(vb);
        }
        c[j * 4 + v] += sum;
      }
    emu::meet_quad();
  }
  static void run_more(float* c, const uint32_t* a, uint64_t b, int more) {
    if (more == 0) for (int i = 0; i < N / 2; i++) c[i] = 0;
    run(c, a, b);
  }
};
