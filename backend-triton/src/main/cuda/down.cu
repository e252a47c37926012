// w2 of one token with the weighted sum over its experts in the same launch: out = sum over k, in f32 and in the order of k, of
// weight[k] * (x[k] . w2[e]^T + s[k] . B[slot, e]^T + bias[e]), rounded once.
//
// A block owns ROWS outputs. Its warps share out the experts, and the contraction where there are fewer experts than warps; their sums meet
// in shared memory. The weights depend on nothing that the kernel before this one does, so a warp has the first of them (all, up to
// STEPS * STEP elements of its contraction) on their way into shared memory before it waits for x. Started early, while w13 still runs,
// the blocks fill the time in which w13 ends and its results are waited for.
//
// Tensor cores: a lane's 16 bytes are eight neighbours of one row, and any order of the contraction will do as long as x has the same. The
// upper eight rows of a 16 x 16 operand are the lower eight, 32 elements further on; x has those elements in its odd columns.
#include <cuda_bf16.h>

#include "table.cuh"

namespace {

using bf16 = __nv_bfloat16;

constexpr int WARPS = 8;
constexpr int ROWS = 8;
constexpr int STEPS = 12;  // under way in a warp: with two blocks, what a multiprocessor has room for
constexpr int STEP = 64;   // elements of the contraction: one 128-byte line of each row
constexpr int VECTOR = 8;  // elements in 16 bytes
constexpr int VECTORS = STEP / VECTOR;
constexpr int RANKS = 64;  // of the expand at a time

// Sixteen bytes into shared memory, in the background: read once, so past the first cache.
__device__ __forceinline__ void copy(uint4* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(to)), "l"(from) : "memory");
}

// Volatile keeps this load behind the wait.
__device__ __forceinline__ float2 load_new(const float* p) {
  float2 v;
  asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
  return v;
}

__device__ __forceinline__ uint4 load_new(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
  return v;
}

// Volatile keeps this one before it.
__device__ __forceinline__ uint4 load_old(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

__device__ __forceinline__ void multiply(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void store(float* p, float v) { *p = v; }
__device__ __forceinline__ void store(bf16* p, float v) { *p = __float2bfloat16_rn(v); }

// Eight ranks of a row of B with eight of s.
__device__ __forceinline__ float expand(uint4 b, const float* s) {
  const unsigned w[4] = {b.x, b.y, b.z, b.w};
  float d = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    d = fmaf(__uint_as_float(w[i] << 16), s[2 * i], d);
    d = fmaf(__uint_as_float(w[i] & 0xffff0000u), s[2 * i + 1], d);
  }
  return d;
}

// Two ranks of s, from what each program of the shrink left.
__device__ __forceinline__ float2 shrunk(const float* part, int k, int r, int rank, int splits, int row) {
  float2 s = make_float2(0.0f, 0.0f);
  if (r < rank) {
    const float* p = part + (size_t)k * splits * row + r;
#pragma unroll 16
    for (int i = 0; i < splits; i++) {
      const float2 v = load_new(p + (size_t)i * row);
      s.x += v.x;
      s.y += v.y;
    }
  }
  return s;
}

// What a warp has in shared memory: of every step two vectors a lane, which only that lane reads, and x.
struct Ring {
  uint4 w[STEPS][2][32];
  uint4 x[STEPS][VECTORS];
};

template <class OUT, bool LORA>
__device__ __forceinline__ void down(const bf16* x, const bf16* w, const float* bias, const float* weights, OUT* out, const int64_t* table,
                                     const int* ids, const int* map, const int* mapping, const float* part, int on_input, int topk,
                                     int columns, int depth, int num_global, int num_local, int slots, int part_row,
                                     int splits) {
  extern __shared__ uint4 shared[];
  __shared__ float ss[LORA ? WARPS : 1][RANKS];
  __shared__ float sums[WARPS][ROWS];
  launch_dependents();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int row = lane / 4;
  const int quad = lane % 4;
  Ring& ring = reinterpret_cast<Ring*>(shared)[warp];
  const int n = blockIdx.x * ROWS + row;
  const int shares = WARPS / topk;
  const int k = warp / shares;
  const int share = warp % shares;
  // All that is short is asked for before the copies, and those only wait for the expert.
  int e = -1;
  int slot = -1;
  if (k < topk) {
    e = ids[k];
    if (LORA && share == 0) {
      slot = mapping[0];
    }
    if (map != nullptr) {
      e = (unsigned)e < (unsigned)num_global ? map[e] : -1;
    }
    e = (unsigned)e < (unsigned)num_local ? e : -1;
  }
  const bool live = e >= 0;
  const bool adapted = LORA && live && (unsigned)slot < (unsigned)slots;
  const int64_t* about = table + (size_t)max(slot, 0) * SLOT_WIDTH;
  const int64_t rank64 = adapted ? about[RANK + DOWN] : 0;
  const int64_t address = adapted ? about[B_ADDR + DOWN] : 0;
  const int64_t expert_stride = adapted ? about[B_EXPERT + DOWN] : 0;
  const int64_t row_stride = adapted ? about[B_ROW + DOWN] : 0;
  const float weight = live && !on_input ? weights[k] : 1.0f;
  const float constant = live && share == 0 && bias != nullptr ? bias[(size_t)e * columns + n] : 0.0f;
  const int all = depth / STEP;
  const int each = (all + shares - 1) / shares;
  const int begin = min(all, share * each);
  const int steps = !live ? 0 : min(all - begin, each);
  const bf16* wp = w + ((size_t)max(e, 0) * columns + n) * depth + begin * STEP + quad * VECTOR;
  const bf16* xp = x + (size_t)k * depth + begin * STEP;
#pragma unroll
  for (int j = 0; j < STEPS; j++) {
    if (j < steps) {
      copy(&ring.w[j][0][lane], wp + j * STEP);
      copy(&ring.w[j][1][lane], wp + j * STEP + STEP / 2);
    }
    if (j % 2 == 1) {
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
  }
  const int rank = (int)rank64;
  const bf16* factor = reinterpret_cast<const bf16*>(2 * (address + expert_stride * e + row_stride * n)) + quad * VECTOR;
  uint4 b0 = make_uint4(0, 0, 0, 0);
  uint4 b1 = make_uint4(0, 0, 0, 0);
  if (LORA) {
    if (quad * VECTOR < rank) {
      b0 = load_old(factor);
    }
    if (quad * VECTOR + RANKS / 2 < rank) {
      b1 = load_old(factor + RANKS / 2);
    }
  }
  wait_for_predecessor();
  // The first of x, without the queue of copies: it is the youngest, and would hold up the oldest weights.
  constexpr int EACH = (STEPS * VECTORS + 31) / 32;
  uint4 first[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int v = lane + 32 * i;
    if (v < STEPS * VECTORS && v < steps * VECTORS) {
      first[i] = load_new(static_cast<const void*>(xp + v * VECTOR));
    }
  }
  float2 s0 = make_float2(0.0f, 0.0f);
  if (LORA) {
    s0 = shrunk(part, k, 2 * lane, rank, splits, part_row);
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int v = lane + 32 * i;
    if (v < STEPS * VECTORS && v < steps * VECTORS) {
      (&ring.x[0][0])[v] = first[i];
    }
  }
  float c[4][4] = {};
  for (int s = 0; s < steps; s += STEPS) {
#pragma unroll
    for (int j = 0; j < STEPS; j += 2) {
      asm volatile("cp.async.wait_group %0;" ::"n"(STEPS / 2 - 1) : "memory");
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 2; i++) {
        if (s + j + i < steps) {
          const uint4 a = ring.w[j + i][0][lane];
          const uint4 b = ring.w[j + i][1][lane];
          const uint4 v = ring.x[j + i][row % 2 * (VECTORS / 2) + quad];
          multiply(c[2 * i], a.x, b.x, a.y, b.y, v.x, v.y);
          multiply(c[2 * i + 1], a.z, b.z, a.w, b.w, v.z, v.w);
        }
      }
      const int ahead = s + j + STEPS;
      if (ahead < steps) {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2; i++) {
          if (ahead + i < steps) {
            copy(&ring.w[j + i][0][lane], wp + (ahead + i) * STEP);
            copy(&ring.w[j + i][1][lane], wp + (ahead + i) * STEP + STEP / 2);
            if (lane < VECTORS) {
              copy(&ring.x[j + i][lane], xp + (ahead + i) * STEP + lane * VECTOR);
            }
          }
        }
      }
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
  }
  float sum = 0.0f;
  if (LORA) {
    for (int r = 0; r < rank; r += RANKS) {
      const float2 s = r == 0 ? s0 : shrunk(part, k, r + 2 * lane, rank, splits, part_row);
      __syncwarp();
      ss[warp][2 * lane] = s.x;
      ss[warp][2 * lane + 1] = s.y;
      __syncwarp();
      if (r > 0) {
        b0 = r + quad * VECTOR < rank ? load_old(factor + r) : make_uint4(0, 0, 0, 0);
        b1 = r + quad * VECTOR + RANKS / 2 < rank ? load_old(factor + r + RANKS / 2) : make_uint4(0, 0, 0, 0);
      }
      sum += expand(b0, &ss[warp][quad * VECTOR]) + expand(b1, &ss[warp][quad * VECTOR + RANKS / 2]);
    }
    sum += __shfl_xor_sync(FULL, sum, 1);
    sum += __shfl_xor_sync(FULL, sum, 2);
  }
  // Columns 2 quad and 2 quad + 1 of rows `row` and `row` + 8: even ones are of the lower elements, odd ones of the upper.
  sum += (c[0][0] + c[1][0]) + (c[2][0] + c[3][0]) + ((c[0][3] + c[1][3]) + (c[2][3] + c[3][3]));
  if (quad == 0) {
    sums[warp][row] = !live ? 0.0f : weight * (sum + constant);
  }
  __syncthreads();
  if (threadIdx.x < ROWS) {
    float total = 0.0f;
    for (int i = 0; i < topk * shares; i++) {
      total += sums[i][threadIdx.x];
    }
    store(out + n - row + threadIdx.x, total);
  }
}

}  // namespace

// x [K, depth], w [E, columns, depth], bias [E, columns] or null, weights [K], out [columns], ids [K], map [global experts] or null, mapping [1],
// part [K, splits, part_row] of shrink.py. K at most WARPS, columns a multiple of ROWS, depth of STEP. The kernel before this one wrote x or
// part, and the one before that x; everything else must be there when this one starts. Grid: columns / ROWS.
#define KERNEL(TO, OUT, LORA)                                                                                                              \
  extern "C" __global__ void __launch_bounds__(WARPS * 32, 2) moe_down_##TO##_##LORA(                                                      \
      const bf16* x, const bf16* w, const float* bias, const float* weights, OUT* out, const int64_t* table, const int* ids,               \
      const int* map, const int* mapping, const float* part, int on_input, int topk, int columns, int depth, int num_global,               \
      int num_local, int slots, int part_row, int splits) {                                                                                \
    down<OUT, LORA>(x, w, bias, weights, out, table, ids, map, mapping, part, on_input, topk, columns, depth, num_global, num_local,       \
                    slots, part_row, splits);                                                                                              \
  }
KERNEL(same, bf16, 0)
KERNEL(same, bf16, 1)
KERNEL(f32, float, 0)
KERNEL(f32, float, 1)
