// Shrink and expand of a tile of up to 16 * WM rows (WM 1, 2 or 4) of one (expert, adapter) with matrix instructions (m16n8k16).
//
// The order of a contraction is free as long as both operands agree on it. So operands can go from global memory into
// registers, 16 bytes a lane (the separate shrink, and B of every expand): lane 4 g + q reads 8 neighbours at 8 q of a
// row's 32, and gives the instruction's first step the first four of them, the second step the rest; the instruction
// believes that they stand at 2 q, 2 q + 1, 2 q + 8, 2 q + 9. Ranks in shared memory lie in that order (place_of). Columns
// of y are permuted in the same spirit, so that a lane owns 8 neighbours of a row and reads and writes y in 16 bytes.
//
// s = x . A^T is summed in f32 and carried into the expand as the sum of two 16-bit floats (17 bits of bf16, 22 of f16,
// whose rows are scaled by a power of two first so that the range suffices): closer to f32 than an f32 sum of 64 terms is
// to the exact one. The contraction is split over warps, then over the blocks of a cluster; partial sums are added in
// a fixed order, so the result does not vary from run to run.
#pragma once
#include <cooperative_groups.h>

#include "common.cuh"

namespace lora {

constexpr int WARPS = 8;
constexpr int STEP = 32;   // of the contraction, a lane's 8 times 4 lanes
constexpr int GROUP = 32;  // columns of y that a warp owns at once
constexpr int AHEAD = 1;   // rounds of groups that y is asked for in advance

__device__ __forceinline__ uint4 load16(const void* p) { return *reinterpret_cast<const uint4*>(p); }

// Factors are older than this kernel's predecessor: the path for data that never changes.
__device__ __forceinline__ uint4 load16_factor(const void* p) { return __ldg(reinterpret_cast<const uint4*>(p)); }
__device__ __forceinline__ uint2 load8_factor(const void* p) { return __ldg(reinterpret_cast<const uint2*>(p)); }

// Asks for memory to be in the L2 cache soon; 16-byte units.
__device__ __forceinline__ void prefetch(const void* p, long long bytes) {
  if (bytes <= 0) {
    return;
  }
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"((unsigned)bytes) : "memory");
#else
  for (long long at = 0; at < bytes; at += 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(p) + at));
  }
#endif
}

template <class T>
__device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
  if constexpr (TypeCode<T>::value == BF16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

// Four blocks of 8 x 8 elements; lane 8 i + j has the address of row j of block i.
__device__ __forceinline__ uint4 load_blocks(unsigned shared) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(shared)
               : "memory");
  return v;
}

__device__ __forceinline__ unsigned shared_address(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ __forceinline__ int round16(int n) { return (n + 15) & ~15; }

// Bytes from one row of ranks to the next, two-byte elements: an odd number of 16, so that 8 rows hit all banks once.
__host__ __device__ constexpr int rank_row_bytes(int columns) { return columns * 2 + 16; }

// One or two targets of a call and where their ranks stand side by side: [first, second], each padded to 16, or both at
// 0 where the second reads the first's a.
struct Ranks {
  const void *a0, *a1, *b0, *b1;  // of the tile's expert
  int b_row0, b_row1;
  int rank0, rank1;
  int at1;                        // column of the second
  int columns;                    // multiple of 16

  template <class T>
  __device__ __forceinline__ bool load(const Factor* table, int slot, int target, int slices, int expert) {
    Factor f = load_factor(table, slot, target, expert);
    rank0 = f.type == TypeCode<T>::value ? f.rank : 0;
    a0 = reinterpret_cast<const T*>(f.a) + f.a_expert * expert;
    b0 = reinterpret_cast<const T*>(f.b) + f.b_expert * expert;
    b_row0 = f.b_row;
    rank1 = 0;
    a1 = b1 = nullptr;
    b_row1 = 0;
    at1 = columns = round16(rank0);
    if (slices > 1) {
      Factor s = load_factor(table, slot, target + 1, expert);
      rank1 = s.type == TypeCode<T>::value ? s.rank : 0;
      a1 = reinterpret_cast<const T*>(s.a) + s.a_expert * expert;
      b1 = reinterpret_cast<const T*>(s.b) + s.b_expert * expert;
      b_row1 = s.b_row;
      if (a1 == a0 && rank1 == rank0) {
        at1 = 0;
      } else {
        columns += round16(rank1);
      }
    }
    return rank0 > 0 || rank1 > 0;
  }

  // Where a column stands in shared memory: pairs of neighbours that lanes 0 to 3 of B give to a step stand together.
  __device__ __forceinline__ int place_of(int column) const {
    const int pad0 = round16(rank0);
    const bool first = column < pad0;
    const int c = first ? column : column - pad0;
    const int in = c % STEP;
    const bool narrow = (first ? rank0 : rank1) - (c - in) <= 16;
    const int place = narrow ? in % 4 / 2 * 8 + in / 4 * 2 : in % 8 / 2 * 8 + in / 8 * 2;
    return column - in + place + in % 2;
  }
};

// Partial sums of 16 rows (x rows at xa and xb for lanes' rows g and g + 8, null = none) over steps [begin, end), which the
// warps of these rows take in turn. Ranks of the result: [column0, column0 + 8 * NT) of `r`, for the second of WN warps those
// behind.
template <class T, int WM, int WN, int NT>
__device__ __forceinline__ void shrink_rows(float (&acc)[NT][4], const T* xa, const T* xb, const Ranks& r, int column0,
                                            int in, int begin, int end) {
  constexpr int stride = WARPS / (WM * WN);
  const int warp = threadIdx.x / 32;
  column0 += warp / WM % WN * NT * 8;
  int step = begin + warp / (WM * WN);
  constexpr int U = NT <= 4 ? 3 : 1;       // steps whose loads are in flight together
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const int pad0 = round16(r.rank0);
  const int rank1 = r.at1 > 0 || r.rank0 == 0 ? r.rank1 : 0;  // a that both share is read once
  const T* base0 = reinterpret_cast<const T*>(r.a0) + (size_t)(column0 + g) * in + q * 8;
  // Ranks of the second begin at column at1 > 0; where it shares a there are no columns of its own.
  const T* base1 = reinterpret_cast<const T*>(r.a1) + (long long)(column0 - pad0 + g) * in + q * 8;
#pragma unroll
  for (int i = 0; i < NT; i++) {
    acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
  }
  const uint4 zero = make_uint4(0, 0, 0, 0);
  for (; step < end; step += U * stride) {
    uint4 a[U], b[U];
#pragma unroll
    for (int u = 0; u < U; u++) {
      const int at = (step + u * stride) * STEP;
      const bool there = step + u * stride < end && at + q * 8 < in;
      a[u] = there && xa != nullptr ? load16(xa + at + q * 8) : zero;
      b[u] = there && xb != nullptr ? load16(xb + at + q * 8) : zero;
    }
    {
      uint4 w[U][NT];
#pragma unroll
      for (int u = 0; u < U; u++) {
        const int at = (step + u * stride) * STEP;
        const bool there = step + u * stride < end && at + q * 8 < in;
#pragma unroll
        for (int i = 0; i < NT; i++) {
          const int column = column0 + i * 8;
          const bool first = column < pad0;
          const bool used = first ? column < r.rank0 : column - pad0 < rank1;
          w[u][i] = there && used ? load16_factor((first ? base0 : base1) + (size_t)(i * 8) * in + at) : zero;
        }
      }
#pragma unroll
      for (int u = 0; u < U; u++) {
#pragma unroll
        for (int i = 0; i < NT; i++) {
          if (column0 + i * 8 < r.columns) {
            mma<T>(acc[i], a[u].x, b[u].x, a[u].y, b[u].y, w[u][i].x, w[u][i].y);
            mma<T>(acc[i], a[u].z, b[u].z, a[u].w, b[u].w, w[u][i].z, w[u][i].w);
          }
        }
      }
    }
  }
}

// Floats from one row of sums in shared memory to the next: two lanes' rows 32 bytes apart in the banks.
__host__ __device__ constexpr int sum_row(int columns) { return columns + 8; }

template <int NT>
__device__ __forceinline__ void put_sums(float* to, const float (&acc)[NT][4], int row_floats, int columns) {
  const int lane = threadIdx.x % 32;
  float* at = to + lane / 4 * row_floats + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < NT; i++) {
    if (i * 8 < columns) {
      *reinterpret_cast<float2*>(at + i * 8) = make_float2(acc[i][0], acc[i][1]);
      *reinterpret_cast<float2*>(at + 8 * row_floats + i * 8) = make_float2(acc[i][2], acc[i][3]);
    }
  }
}

template <int NT>
__device__ __forceinline__ void add_sums(float (&acc)[NT][4], const float* from, int row_floats, int columns) {
  const int lane = threadIdx.x % 32;
  const float* at = from + lane / 4 * row_floats + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < NT; i++) {
    if (i * 8 < columns) {
      float2 v = *reinterpret_cast<const float2*>(at + i * 8);
      float2 w = *reinterpret_cast<const float2*>(at + 8 * row_floats + i * 8);
      acc[i][0] += v.x;
      acc[i][1] += v.y;
      acc[i][2] += w.x;
      acc[i][3] += w.y;
    }
  }
}

// Sums of all warps of the block, [16 * WM][row_floats], in `sums` ([WK / 2 or 1][16 * WM][row_floats]). WK warps share
// the contraction of each 16 rows: the upper half hands its sums to the lower, then all add up what is left, in order.
template <int WM, int WN, int NT>
__device__ __forceinline__ void block_sums(float (&acc)[NT][4], float* sums, int row_floats, int columns) {
  constexpr int WK = WARPS / (WM * WN);
  constexpr int HALF = WK / 2;
  const int warp = threadIdx.x / 32;
  const int wk = warp / (WM * WN);
  const int plane = 16 * WM * row_floats;
  const int column0 = warp / WM % WN * NT * 8;
  float* own = sums + warp % WM * 16 * row_floats + column0;
  columns -= column0;
  if constexpr (HALF == 0) {
    put_sums(own, acc, row_floats, columns);
  } else {
    if (wk >= HALF) {
      put_sums(own + (wk - HALF) * plane, acc, row_floats, columns);
    }
    __syncthreads();
    if (wk < HALF) {
      add_sums(acc, own + wk * plane, row_floats, columns);
      put_sums(own + wk * plane, acc, row_floats, columns);  // the same lanes' own places
    }
  }
  __syncthreads();
  if constexpr (HALF > 1) {
    for (int i = threadIdx.x; i < plane; i += WARPS * 32) {
      float v = sums[i];
#pragma unroll
      for (int h = 1; h < HALF; h++) {
        v += sums[i + h * plane];
      }
      sums[i] = v;
    }
    __syncthreads();
  }
}

// Ranks of a row from `value(row, column)` into two 16-bit floats each; factor[row] is what the row's delta is multiplied
// by. A warp a row.
template <class T, class Value>
__device__ __forceinline__ void split_rows(unsigned char* high, unsigned char* low, float* factor, int rows, int padded_rows,
                                           const Ranks& r, int row_bytes, Value value) {
  const int columns = r.columns;
  const int lane = threadIdx.x % 32;
  for (int row = threadIdx.x / 32; row < padded_rows; row += WARPS) {
    float scale = 1.0f;
    if (TypeCode<T>::value == F16 && row < rows) {
      float most = 0.0f;
      for (int c = lane; c < columns; c += 32) {
        most = fmaxf(most, fabsf(value(row, c)));
      }
      for (int d = 16; d > 0; d >>= 1) {
        most = fmaxf(most, __shfl_xor_sync(ALL, most, d));
      }
      if (most > 0.0f && most < 3e38f) {
        int exponent;
        frexpf(most, &exponent);
        scale = ldexpf(1.0f, min(max(exponent, -100), 100));
      }
    }
    const float inverse = 1.0f / scale;
    for (int c = lane; c < columns; c += 32) {
      float v = row < rows ? value(row, c) * inverse : 0.0f;
      T h = from_float<T>(v);
      float rest = v - to_float(h);
      const int place = r.place_of(c);
      reinterpret_cast<T*>(high + row * row_bytes)[place] = h;
      // An infinite part has no rest.
      reinterpret_cast<T*>(low + row * row_bytes)[place] = from_float<T>(isfinite(rest) ? rest : 0.0f);
    }
    if (lane == 0 && row < rows) {
      factor[row] *= scale;
    }
  }
}

struct Output {
  void* y;
  long long row;    // elements from one pair's row to the next
  long long slice;  // to the second target's columns, HALVES
  int out;          // columns of one target
  int interleaved;  // whether columns of the two targets alternate
  int add;
};

// Asks for a stretch of y's rows that all warps are about to read: groups [group, group + WARPS) before end.
template <class Y, int WM>
__device__ __forceinline__ void prefetch_y(const Output& to, int slices, const long long* y_of_row, int rows, int group,
                                           int end) {
  constexpr int ROWS = 16 * WM / WARPS;  // of a warp
  const int lane = threadIdx.x % 32;
  const int row = threadIdx.x / 32 * ROWS + lane;
  // Few rows are few bytes, and likely in the cache already.
  if (WM == 1 || !to.add || lane >= ROWS || row >= rows || group >= end) {
    return;
  }
  const int groups = (to.out + GROUP - 1) / GROUP;
  const bool alternate = to.interleaved && slices > 1;
  const int last_group = min(group + WARPS, end) - 1;
  auto column = [&](int i) {
    return alternate ? (long long)i * GROUP : i / groups * to.slice + (long long)(i % groups) * GROUP;
  };
  const long long from = column(group);
  const long long until = min(column(last_group) + GROUP, (long long)slices * to.out);
  prefetch(reinterpret_cast<const Y*>(to.y) + y_of_row[row] + from, (until - from) * (long long)sizeof(Y));
}

// Two neighbours of y, as they lie in memory, and as floats.
template <class Y>
struct Pack;
template <>
struct Pack<bf16> {
  static __device__ __forceinline__ float2 open(unsigned v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
  }
  static __device__ __forceinline__ unsigned close(float a, float b) {
    const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const unsigned*>(&v);
  }
};
template <>
struct Pack<f16> {
  static __device__ __forceinline__ float2 open(unsigned v) { return __half22float2(*reinterpret_cast<const __half2*>(&v)); }
  static __device__ __forceinline__ unsigned close(float a, float b) {
    const __half2 v = __floats2half2_rn(a, b);
    return *reinterpret_cast<const unsigned*>(&v);
  }
};

// Eight neighbours of y.
template <class Y>
struct Eight {
  uint4 v[sizeof(Y) / 2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < (int)sizeof(Y) / 2; i++) {
      v[i] = make_uint4(0, 0, 0, 0);
    }
  }

  __device__ __forceinline__ void load(const Y* p) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(Y) / 2; i++) {
      v[i] = load16(p + i * (16 / sizeof(Y)));
    }
  }

  // to p: each plus its delta.
  __device__ __forceinline__ void store_sum(Y* p, const float (&d)[8]) const {
    if constexpr (sizeof(Y) == 4) {
      store16(p, sum(v[0], d[0], d[1], d[2], d[3]));
      store16(p + 4, sum(v[1], d[4], d[5], d[6], d[7]));
    } else {
      store16(p, make_uint4(pair(v[0].x, d[0], d[1]), pair(v[0].y, d[2], d[3]), pair(v[0].z, d[4], d[5]),
                            pair(v[0].w, d[6], d[7])));
    }
  }

  // The same, but only the even or the odd ones.
  __device__ __forceinline__ void store_some(Y* p, const float (&d)[8], bool even, bool odd) const {
    const Y* before = reinterpret_cast<const Y*>(v);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (i % 2 == 0 ? even : odd) {
        p[i] = from_float<Y>(d[i] + to_float(before[i]));
      }
    }
  }

 private:
  static __device__ __forceinline__ uint4 sum(const uint4& v, float a, float b, float c, float d) {
    return make_uint4(__float_as_uint(__uint_as_float(v.x) + a), __float_as_uint(__uint_as_float(v.y) + b),
                      __float_as_uint(__uint_as_float(v.z) + c), __float_as_uint(__uint_as_float(v.w) + d));
  }

  static __device__ __forceinline__ unsigned pair(unsigned v, float a, float b) {
    const float2 y = Pack<Y>::open(v);
    return Pack<Y>::close(y.x + a, y.y + b);
  }

  // The compiler would take such a store of computed values apart.
  static __device__ __forceinline__ void store16(void* p, const uint4& v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
  }
};

// What one half of a warp's 32 columns of y takes: where columns of two targets alternate each half belongs to one of
// them, otherwise both to the same.
struct Half {
  const void* b;  // this lane's first row of B, its ranks from 0
  int step;       // elements to its second row
  int rank;
  int column;     // of the ranks in shared memory
  bool use[2];
};

// How many ranks a warp multiplies by: 16, 32 or 64 that it holds, or any number.
enum Held { HELD_16, HELD_32, HELD_64, HELD_NOT };
template <int N>
struct Const {
  static constexpr int value = N;
};

// y += factor . s . B^T for groups [group, end) of 32 columns of y, a warp a group. rows <= 16 * WM. A warp keeps what it
// needs of B in registers (up to 64 ranks) while rows stream past; y of two blocks of rows is on its way.
template <class T, class Y, int WM>
__device__ __forceinline__ void expand_rows(const Output& to, const Ranks& r, int slices, const unsigned char* high,
                                            const unsigned char* low, int row_bytes, const float* factor,
                                            const long long* y_of_row, int rows, int group, int end) {
  constexpr int DEPTH = WM == 1 || sizeof(Y) == 4 ? 1 : 2;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const int groups = (to.out + GROUP - 1) / GROUP;
  const bool alternate = to.interleaved && slices > 1;
  const int blocks = (rows + 15) / 16;
  // Of a block of 16 rows and 16 ranks, or the next 8 for lanes 16 and on.
  const unsigned own_high = shared_address(high) + lane % 16 * row_bytes + lane / 16 * 16;
  const unsigned low_after = (unsigned)(low - high);
  for (group += threadIdx.x / 32; group < end; group += WARPS) {
    prefetch_y<Y, WM>(to, slices, y_of_row, rows, group - threadIdx.x / 32 + AHEAD * WARPS, end);
    const int of = !alternate && group >= groups ? 1 : 0;
    const int at = alternate ? group * (GROUP / 2) : (group - of * groups) * GROUP;  // first column of the target
    if (!alternate && (of == 0 ? r.rank0 : r.rank1) == 0) {
      continue;
    }
    // Where this lane's 8 columns of y begin, and how many of the targets' columns precede them.
    const long long y_column = alternate ? (long long)group * GROUP + q * 8 : of * to.slice + at + q * 8;
    const bool inside = alternate ? at + q * 4 < to.out : at + q * 8 < to.out;
    Y* const y = reinterpret_cast<Y*>(to.y) + y_column;

    Half half[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool second = alternate ? h == 1 : of == 1;
      const int b_row = second ? r.b_row1 : r.b_row0;
      const int first = alternate ? at + g / 2 * 4 + g % 2 : at + g / 2 * 8 + g % 2 + h * 4;
      half[h].b = reinterpret_cast<const T*>(second ? r.b1 : r.b0) + (size_t)first * b_row;
      half[h].step = 2 * b_row;
      half[h].rank = second ? r.rank1 : r.rank0;
      half[h].column = second ? r.at1 : 0;
      half[h].use[0] = first < to.out;
      half[h].use[1] = first + 2 < to.out;
    }
    const int most = max(half[0].rank, half[1].rank);

    auto stream = [&](auto known) {
      constexpr int HELD = decltype(known)::value;
      constexpr int STEPS = HELD == HELD_64 || HELD == HELD_NOT ? 2 : 1;  // of 32 ranks
      uint4 w[STEPS][4];
      auto load_b = [&](int from) {
#pragma unroll
        for (int c = 0; c < STEPS; c++) {
          const int c0 = from + c * STEP;
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const Half& h = half[j / 2];
            const T* p = reinterpret_cast<const T*>(h.b) + j % 2 * h.step + c0;
            w[c][j] = make_uint4(0, 0, 0, 0);
            if (HELD == HELD_16 || (HELD == HELD_NOT && h.rank - c0 <= 16)) {
              if (h.use[j % 2] && c0 + q * 4 < h.rank) {
                const uint2 v = load8_factor(p + q * 4);
                w[c][j].x = v.x;
                w[c][j].y = v.y;
              }
            } else if (h.use[j % 2] && c0 + q * 8 < h.rank) {
              w[c][j] = load16_factor(p + q * 8);
            }
          }
        }
      };
      Eight<Y> old[DEPTH][2];  // of rows g and g + 8
      auto load_y = [&](Eight<Y>(&into)[2], int m) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int row = m * 16 + g + h * 8;
          into[h].clear();
          if (row < rows && inside && to.add) {
            into[h].load(y + y_of_row[row]);
          }
        }
      };
      // Multiplies by 16 of the ranks in w, parts.x and y or z and w of each.
      auto multiply = [&](float(&acc)[4][4], unsigned ranks, int c, bool later, int first, int last) {
        const uint4 hi = load_blocks(ranks);
        const uint4 lo = load_blocks(ranks + low_after);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if (j >= first && j < last) {
            const unsigned b0 = later ? w[c][j].z : w[c][j].x;
            const unsigned b1 = later ? w[c][j].w : w[c][j].y;
            mma<T>(acc[j], hi.x, hi.y, hi.z, hi.w, b0, b1);
            mma<T>(acc[j], lo.x, lo.y, lo.z, lo.w, b0, b1);
          }
        }
      };
      load_b(0);
#pragma unroll
      for (int d = 0; d < DEPTH; d++) {
        load_y(old[d], d);
      }
#pragma unroll 1
      for (int m0 = 0; m0 < (WM > DEPTH ? blocks : 1); m0 += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
          const int m = m0 + d;
          if (m >= blocks) {
            break;
          }
          float acc[4][4];
#pragma unroll
          for (int j = 0; j < 4; j++) {
            acc[j][0] = acc[j][1] = acc[j][2] = acc[j][3] = 0.0f;
          }
          const unsigned ranks = own_high + m * 16 * row_bytes;
          if constexpr (HELD != HELD_NOT) {
            const unsigned from = ranks + half[0].column * 2;
#pragma unroll
            for (int c = 0; c < STEPS; c++) {
              multiply(acc, from + c * STEP * 2, c, false, 0, 4);
              if (HELD != HELD_16) {
                multiply(acc, from + c * STEP * 2 + 32, c, true, 0, 4);
              }
            }
          } else {
#pragma unroll 1
            for (int from = 0; from < most; from += STEPS * STEP) {
              if (from > 0 || (m > 0 && most > STEPS * STEP)) {
                load_b(from);  // ranks that no registers hold
              }
#pragma unroll
              for (int c = 0; c < STEPS; c++) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                  const int c0 = from + c * STEP;
                  if (half[h].rank > c0) {
                    multiply(acc, ranks + (half[h].column + c0) * 2, c, false, 2 * h, 2 * h + 2);
                  }
                  if (half[h].rank - c0 > 16) {
                    multiply(acc, ranks + (half[h].column + c0) * 2 + 32, c, true, 2 * h, 2 * h + 2);
                  }
                }
              }
            }
          }
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const int row = m * 16 + g + h * 8;
            if (row >= rows || !inside) {
              continue;
            }
            const float f = factor[row];
            float delta[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
              delta[i] = acc[i / 2][h * 2 + i % 2] * f;
            }
            Y* p = y + y_of_row[row];
            if (HELD == HELD_NOT && alternate) {
              const float mixed[8] = {delta[0], delta[4], delta[1], delta[5], delta[2], delta[6], delta[3], delta[7]};
              if (r.rank0 > 0 && r.rank1 > 0) {
                old[d][h].store_sum(p, mixed);
              } else {  // columns of the target that is not there keep their bits
                old[d][h].store_some(p, mixed, r.rank0 > 0, r.rank1 > 0);
              }
            } else {
              old[d][h].store_sum(p, delta);
            }
          }
          if (WM > DEPTH) {
            load_y(old[d], m + DEPTH);
          }
        }
      }
    };
    if (alternate || most > 64 || (most > 32 && most <= 48)) {
      stream(Const<HELD_NOT>{});
    } else if (most > 32) {
      stream(Const<HELD_64>{});
    } else if (most > 16) {
      stream(Const<HELD_32>{});
    } else {
      stream(Const<HELD_16>{});
    }
  }
}

}  // namespace lora
