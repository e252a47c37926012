// Shrink and expand of a tile of up to 16 * WM rows (WM 1 or 2) of one (expert, adapter) with matrix instructions (m16n8k16).
//
// Nothing is staged in shared memory but the ranks: operands go from global memory into registers, 16 bytes a lane. That
// works because the order of a contraction is free as long as both operands agree on it. Lane 4 g + q reads 8 neighbours
// at 8 q of a row's 32, and gives the instruction's first step the first four of them, the second step the rest; the
// instruction believes that they stand at 2 q, 2 q + 1, 2 q + 8, 2 q + 9. Columns of y are permuted in the same spirit, so
// that a lane owns 8 neighbours of a row and reads and writes y in 16 bytes.
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
constexpr int AHEAD = 2;   // rounds of groups that y is asked for in advance

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

__device__ __forceinline__ int round16(int n) { return (n + 15) & ~15; }

// Bytes from one row of ranks to the next, two-byte elements: 16-byte reads of 8 lanes hit all banks once.
__host__ __device__ constexpr int rank_row_bytes(int columns) { return (columns * 2 + 127) / 128 * 128 + 64; }

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
                                           int columns, int row_bytes, Value value) {
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
      reinterpret_cast<T*>(high + row * row_bytes)[c] = h;
      // An infinite part has no rest.
      reinterpret_cast<T*>(low + row * row_bytes)[c] = from_float<T>(isfinite(rest) ? rest : 0.0f);
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
__device__ __forceinline__ void prefetch_y(const Output& to, int slices, const int* pair_of_row, int rows, int group,
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
  prefetch(reinterpret_cast<const Y*>(to.y) + pair_of_row[row] * to.row + from, (until - from) * (long long)sizeof(Y));
}

// y += factor . s . B^T for groups [group, end) of 32 columns of y, a warp a group. rows <= 16 * WM.
template <class T, class Y, int WM>
__device__ __forceinline__ void expand_rows(const Output& to, const Ranks& r, int slices, const unsigned char* high,
                                            const unsigned char* low, int row_bytes, const float* factor,
                                            const int* pair_of_row, int rows, int group, int end) {
  constexpr int MP = WM == 1 ? 1 : 2;  // blocks of 16 rows that share what is loaded of B
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int q = lane % 4;
  const int groups = (to.out + GROUP - 1) / GROUP;
  for (group += threadIdx.x / 32; group < end; group += WARPS) {
    prefetch_y<Y, WM>(to, slices, pair_of_row, rows, group - threadIdx.x / 32 + AHEAD * WARPS, end);
    const bool alternate = to.interleaved && slices > 1;
    const int of = alternate ? 0 : group / groups;
    const int at = alternate ? group * (GROUP / 2) : group % groups * GROUP;  // first column of the target
    if (!alternate && (of == 0 ? r.rank0 : r.rank1) == 0) {
      continue;
    }
    // Where this lane's 8 columns of y begin, and how many of the targets' columns precede them.
    const long long y_column = alternate ? (long long)group * GROUP + q * 8 : of * to.slice + at + q * 8;
    const bool inside = alternate ? at + q * 4 < to.out : at + q * 8 < to.out;
    const bool some_missing = alternate && (r.rank0 == 0 || r.rank1 == 0);
#pragma unroll 1
    for (int m0 = 0; m0 * 16 < rows; m0 += MP) {
      float acc[MP][4][4];
      uint4 old[MP][2][sizeof(Y) / 2];  // as it lies in memory: it waits long
#pragma unroll
      for (int m = 0; m < MP; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int row = (m0 + m) * 16 + g + h * 8;
#pragma unroll
          for (int i = 0; i < (int)sizeof(Y) / 2; i++) {
            old[m][h][i] = make_uint4(0, 0, 0, 0);
          }
          if (row < rows && inside && to.add) {
            const Y* p = reinterpret_cast<const Y*>(to.y) + pair_of_row[row] * to.row + y_column;
#pragma unroll
            for (int i = 0; i < (int)sizeof(Y) / 2; i++) {
              old[m][h][i] = load16(p + i * (16 / sizeof(Y)));
            }
          }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
          acc[m][j][0] = acc[m][j][1] = acc[m][j][2] = acc[m][j][3] = 0.0f;
        }
      }
      // Both targets where columns alternate (two of the four blocks of 8 each), otherwise one.
#pragma unroll 1
      for (int s = alternate ? 0 : of; s < (alternate ? 2 : of + 1); s++) {
        const int rank = s == 0 ? r.rank0 : r.rank1;
        const int column = s == 0 ? 0 : r.at1;
        const int b_row = s == 0 ? r.b_row0 : r.b_row1;
        const T* b = reinterpret_cast<const T*>(s == 0 ? r.b0 : r.b1);
        // Row j of B is 2 j (where columns alternate 2 (j % 2)) after the first.
        const int first = at + (alternate ? g / 2 * 4 : g / 2 * 8) + g % 2;
        const T* row = b + (size_t)first * b_row;
        bool use[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          use[j] = first + 2 * (alternate ? j % 2 : j) < to.out && (!alternate || j / 2 == s);
        }
        auto row_of = [&](int j) { return row + 2 * (alternate ? j % 2 : j) * b_row; };
        for (int c0 = 0; c0 < rank; c0 += STEP) {
          const unsigned char* hi = high + (column + c0) * 2 + (m0 * 16 + g) * row_bytes;
          const unsigned char* lo = low + (column + c0) * 2 + (m0 * 16 + g) * row_bytes;
          if (rank - c0 <= 16) {
            uint2 w[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
              w[j] = use[j] && c0 + q * 4 < rank ? load8_factor(row_of(j) + c0 + q * 4) : make_uint2(0, 0);
            }
#pragma unroll
            for (int m = 0; m < MP; m++) {
              uint2 h0 = *reinterpret_cast<const uint2*>(hi + m * 16 * row_bytes + q * 8);
              uint2 h1 = *reinterpret_cast<const uint2*>(hi + (m * 16 + 8) * row_bytes + q * 8);
              uint2 l0 = *reinterpret_cast<const uint2*>(lo + m * 16 * row_bytes + q * 8);
              uint2 l1 = *reinterpret_cast<const uint2*>(lo + (m * 16 + 8) * row_bytes + q * 8);
#pragma unroll
              for (int j = 0; j < 4; j++) {
                mma<T>(acc[m][j], h0.x, h1.x, h0.y, h1.y, w[j].x, w[j].y);
                mma<T>(acc[m][j], l0.x, l1.x, l0.y, l1.y, w[j].x, w[j].y);
              }
            }
          } else {
            uint4 w[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
              w[j] = use[j] && c0 + q * 8 < rank ? load16_factor(row_of(j) + c0 + q * 8) : make_uint4(0, 0, 0, 0);
            }
#pragma unroll
            for (int m = 0; m < MP; m++) {
              uint4 h0 = *reinterpret_cast<const uint4*>(hi + m * 16 * row_bytes + q * 16);
              uint4 h1 = *reinterpret_cast<const uint4*>(hi + (m * 16 + 8) * row_bytes + q * 16);
              uint4 l0 = *reinterpret_cast<const uint4*>(lo + m * 16 * row_bytes + q * 16);
              uint4 l1 = *reinterpret_cast<const uint4*>(lo + (m * 16 + 8) * row_bytes + q * 16);
#pragma unroll
              for (int j = 0; j < 4; j++) {
                mma<T>(acc[m][j], h0.x, h1.x, h0.y, h1.y, w[j].x, w[j].y);
                mma<T>(acc[m][j], h0.z, h1.z, h0.w, h1.w, w[j].z, w[j].w);
                mma<T>(acc[m][j], l0.x, l1.x, l0.y, l1.y, w[j].x, w[j].y);
                mma<T>(acc[m][j], l0.z, l1.z, l0.w, l1.w, w[j].z, w[j].w);
              }
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < MP; m++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const int row = (m0 + m) * 16 + g + h * 8;
          if (row >= rows || !inside) {
            continue;
          }
          const float f = factor[row];
          const Y* before = reinterpret_cast<const Y*>(old[m][h]);
          alignas(16) Y sum[8];
#pragma unroll
          for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
              const float v = acc[m][j][h * 2 + e] * f;
              if (alternate) {  // both indices are known to the compiler, one that depends on `alternate` is not
                const int i = (j % 2 * 2 + e) * 2 + j / 2;
                sum[i] = from_float<Y>(v + to_float(before[i]));
              } else {
                const int i = j * 2 + e;
                sum[i] = from_float<Y>(v + to_float(before[i]));
              }
            }
          }
          Y* p = reinterpret_cast<Y*>(to.y) + pair_of_row[row] * to.row + y_column;
          if (some_missing) {
            // Columns of the target that is not there keep their bits.
#pragma unroll
            for (int i = 0; i < 8; i++) {
              if ((i % 2 == 0 ? r.rank0 : r.rank1) > 0) {
                p[i] = sum[i];
              }
            }
          } else {
#pragma unroll
            for (int i = 0; i < (int)sizeof(Y) / 2; i++) {
              reinterpret_cast<uint4*>(p)[i] = reinterpret_cast<const uint4*>(sum)[i];
            }
          }
        }
      }
    }
  }
}

}  // namespace lora
