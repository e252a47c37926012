// Pairs (token, k) sorted by (local expert, adapter), stable in the pair's number: the order is the same in every run.
// Key of a pair: expert * NA + (slot + 1), slot -1 = base; NA = slots + 1, or 1 without LoRA. Pairs without a local expert
// are dropped.
//
//   pairs  [P]          row -> pair                    pos_of [P]    pair -> row, -1 = dropped
//   off    [E * NA + 1] first row of each key          nums   [4]    w13/w2 tiles, shrink tiles, rows, segments
//   tiles  [.., 4]      expert, first row, end, first row with an adapter      tiles of at most BM rows of one expert
//   shrink [.., 4]      expert, first row, end, slot                           tiles of at most BS rows of one segment
//   seg    [..]         slot of each segment (a run of rows of one expert and one adapter)
//   seg_of [P]          row -> segment, -1 = base row
//
// Few pairs: one launch of moe_pair_sort, every block counts everything for itself. Many: moe_pair_gather lists each expert's
// pairs, moe_pair_place orders the lists. In all of them a block serves one expert, so what it costs does not depend much on
// how tokens are spread.
#include "common.cuh"

namespace moe {

constexpr int THREADS = 1024;
constexpr int SORT_WARPS = THREADS / 32;
constexpr unsigned FULL = 0xffffffffu;
constexpr unsigned short DROPPED = 0xffff;
constexpr int AHEAD = 16;                   // loads in flight together
constexpr int ROUND = THREADS * 2 * 32;     // pairs a block looks at in one round: two words of matches a lane

struct Pairs {
  const int* ids;
  const int* map;
  const int* adapter;      // [T] slot or -1; null without LoRA
  const int* slot_active;  // [slots] 0 = the slot changes nothing here; null = all do
  int P, K, num_global, E, NA;

  __device__ __forceinline__ int expert(int p) const { return local_expert(ids[p], map, num_global, E); }

  __device__ __forceinline__ int column(int p) const {
    if (NA == 1) {
      return 0;
    }
    int slot = adapter[p / K];
    if ((unsigned)slot >= (unsigned)(NA - 1) || (slot_active != nullptr && slot_active[slot] == 0)) {
      return 0;
    }
    return slot + 1;
  }
};

struct Plan {
  int *off, *pairs, *pos_of, *tiles, *shrink, *seg, *seg_of, *nums;
  int BM, BS;
};

struct Before {
  int rows, tiles, segs, shrinks;
};

// Sums over a block of what its warps hold (the same in all lanes of a warp), in every thread.
__device__ void block_sum(Before& below, Before& all, Before (*part)[SORT_WARPS]) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (lane == 0) {
    part[0][warp] = below;
    part[1][warp] = all;
  }
  __syncthreads();
  Before p = part[0][lane];
  Before q = part[1][lane];
  below = {__reduce_add_sync(FULL, p.rows), __reduce_add_sync(FULL, p.tiles), __reduce_add_sync(FULL, p.segs),
           __reduce_add_sync(FULL, p.shrinks)};
  all = {__reduce_add_sync(FULL, q.rows), __reduce_add_sync(FULL, q.tiles), __reduce_add_sync(FULL, q.segs),
         __reduce_add_sync(FULL, q.shrinks)};
  __syncthreads();
}

// One expert's rows, segments and shrink tiles from its counts; in every lane of a warp.
__device__ __forceinline__ Before of_expert(const int* count, int NA, int BM, int BS) {
  int rows = 0;
  int segs = 0;
  int shrinks = 0;
  for (int a = threadIdx.x % 32; a < NA; a += 32) {
    int c = count[a];
    rows += c;
    if (a > 0) {
      segs += c > 0;
      shrinks += (c + BS - 1) / BS;
    }
  }
  rows = __reduce_add_sync(FULL, rows);
  return {rows, (rows + BM - 1) / BM, __reduce_add_sync(FULL, segs), __reduce_add_sync(FULL, shrinks)};
}

__device__ __forceinline__ void add(Before& to, const Before& b) {
  to.rows += b.rows;
  to.tiles += b.tiles;
  to.segs += b.segs;
  to.shrinks += b.shrinks;
}

// Everything but counting. count [NA]: this expert's, shared or global. Pairs come from keys [P] (shared, all experts') or,
// where that is null, from list: this expert's pairs in order, at the rows that it gets.
__device__ void place(const Pairs in, const Plan out, const Before before, const Before all, const int* count,
                      const unsigned short* keys, const int* list, int* scratch, Before (*part)[SORT_WARPS]) {
  const int x = blockIdx.x;
  const int NA = in.NA;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int* base = scratch;                  // [NA] next free row
  int* seg_id = base + NA;              // [NA]
  int* shrink_at = seg_id + NA;         // [NA]
  int* table = shrink_at + NA;          // [SORT_WARPS][NA]
  for (int i = threadIdx.x; i < SORT_WARPS * NA; i += THREADS) {
    table[i] = 0;
  }
  if (x == 0 && threadIdx.x == 0) {
    out.nums[0] = all.tiles;
    out.nums[1] = all.shrinks;
    out.nums[2] = all.rows;
    out.nums[3] = all.segs;
    out.off[in.E * NA] = all.rows;
  }

  // This expert's adapters: three scans side by side.
  if (warp == 0) {
    Before run = before;
    for (int a0 = 0; a0 < NA; a0 += 32) {
      int a = a0 + lane;
      int c = a < NA ? count[a] : 0;
      int live = a > 0 && c > 0;
      int st = a > 0 ? (c + out.BS - 1) / out.BS : 0;
      int rows = c;
      int segs = live;
      int shrinks = st;
      for (int d = 1; d < 32; d <<= 1) {
        int r = __shfl_up_sync(FULL, rows, d);
        int s = __shfl_up_sync(FULL, segs, d);
        int k = __shfl_up_sync(FULL, shrinks, d);
        if (lane >= d) {
          rows += r;
          segs += s;
          shrinks += k;
        }
      }
      if (a < NA) {
        base[a] = run.rows + rows - c;
        out.off[x * NA + a] = base[a];
        seg_id[a] = live ? run.segs + segs - 1 : -1;
        shrink_at[a] = run.shrinks + shrinks - st;
        if (live) {
          out.seg[seg_id[a]] = a - 1;
        }
      }
      run.rows += __shfl_sync(FULL, rows, 31);
      run.segs += __shfl_sync(FULL, segs, 31);
      run.shrinks += __shfl_sync(FULL, shrinks, 31);
    }
    if (lane == 0) {
      part[0][0].rows = run.rows;
    }
  }
  __syncthreads();
  const int row0 = before.rows;
  const int row1 = part[0][0].rows;
  const int first_lora = NA > 1 ? base[1] : row1;
  __syncthreads();

  for (int i = threadIdx.x; i * out.BM < row1 - row0; i += THREADS) {
    int r = row0 + i * out.BM;
    reinterpret_cast<int4*>(out.tiles)[before.tiles + i] = make_int4(x, r, min(r + out.BM, row1), max(r, first_lora));
  }
  for (int a = 1 + warp; a < NA; a += SORT_WARPS) {
    int r0 = base[a];
    int r1 = a + 1 < NA ? base[a + 1] : row1;
    for (int i = lane; i * out.BS < r1 - r0; i += 32) {
      int r = r0 + i * out.BS;
      reinterpret_cast<int4*>(out.shrink)[shrink_at[a] + i] = make_int4(x, r, min(r + out.BS, r1), a - 1);
    }
  }

  // Each warp owns a stretch of the pairs: count them by adapter, scan over warps, then hand out rows in the pairs' order.
  const int n = keys == nullptr ? row1 - row0 : in.P;
  const int stretch = (n + THREADS - 1) / THREADS * 32;
  const int begin = warp * stretch;
  const int end = min(begin + stretch, n);
  int* own = table + warp * NA;
  for (int i = begin + lane; i < end; i += 32) {
    if (keys == nullptr) {
      atomicAdd(own + in.column(list[row0 + i]), 1);
    } else if (keys[i] != DROPPED && keys[i] / NA == x) {
      atomicAdd(own + keys[i] % NA, 1);
    }
  }
  __syncthreads();
  for (int a = threadIdx.x; a < NA; a += THREADS) {
    int run = base[a];
    for (int w = 0; w < SORT_WARPS; w++) {
      int c = table[w * NA + a];
      table[w * NA + a] = run;
      run += c;
    }
  }
  __syncthreads();
  for (int i0 = begin; i0 < end; i0 += 32) {
    const int i = i0 + lane;
    int p = -1;
    int a = 0;
    if (i < end) {
      if (keys == nullptr) {
        p = list[row0 + i];
        a = in.column(p);
      } else if (keys[i] != DROPPED && keys[i] / NA == x) {
        p = i;
        a = keys[i] % NA;
      } else if (x == 0 && keys[i] == DROPPED) {
        out.pos_of[i] = -1;
      }
    }
    unsigned here = __ballot_sync(FULL, p >= 0);
    if (p >= 0) {
      unsigned peers = __match_any_sync(here, a);
      int row = own[a] + __popc(peers & ((1u << lane) - 1));
      __syncwarp(here);
      if (lane == __ffs(peers) - 1) {
        own[a] += __popc(peers);
      }
      out.pairs[row] = p;
      out.pos_of[p] = row;
      out.seg_of[row] = seg_id[a];
    }
    __syncwarp();
  }
}

// Which of a round's pairs belong to this expert. A warp looks at `steps` times 32 pairs in a row; lane l gets the words of
// steps l and l + 32. below: how many belong to experts before it (summed per thread).
__device__ void matches(const Pairs in, int* pos_of, int first, int steps, unsigned (&word)[2], int& below) {
  const int x = blockIdx.x;
  const int lane = threadIdx.x % 32;
  const int p0 = first + threadIdx.x / 32 * steps * 32 + lane;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    word[half] = 0;
    for (int s0 = 0; s0 < 32 && half * 32 + s0 < steps; s0 += AHEAD) {
      int e[AHEAD];
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        int s = half * 32 + s0 + i;
        int p = p0 + s * 32;
        e[i] = s < steps && p < in.P ? in.expert(p) : -2;
      }
#pragma unroll
      for (int i = 0; i < AHEAD; i++) {
        below += (unsigned)e[i] < (unsigned)x;
        unsigned w = __ballot_sync(FULL, e[i] == x);
        if (lane == s0 + i) {
          word[half] = w;
        }
        if (x == 0 && e[i] == -1) {
          pos_of[p0 + (half * 32 + s0 + i) * 32] = -1;
        }
      }
    }
  }
}

}  // namespace moe

using namespace moe;

// Grid: E blocks. Dynamic shared memory: E * NA + (3 + SORT_WARPS) * NA words, then P halfwords.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_pair_sort(const int* ids, const int* map, const int* adapter, const int* slot_active, int* off, int* pairs,
                  int* pos_of, int* tiles, int* shrink, int* seg, int* seg_of, int* nums, int P, int K, int num_global,
                  int E, int NA, int BM, int BS) {
  extern __shared__ int shared[];
  __shared__ Before part[2][SORT_WARPS];
  int* count = shared;
  int* scratch = count + E * NA;
  unsigned short* keys = reinterpret_cast<unsigned short*>(scratch + (3 + SORT_WARPS) * NA);
  const Pairs in = {ids, map, adapter, slot_active, P, K, num_global, E, NA};
  for (int i = threadIdx.x; i < E * NA; i += THREADS) {
    count[i] = 0;
  }
  wait_for_predecessor();
  __syncthreads();
  for (int p = threadIdx.x; p < P; p += THREADS) {
    int e = in.expert(p);
    int key = e < 0 ? DROPPED : e * NA + in.column(p);
    keys[p] = (unsigned short)key;
    if (e >= 0) {
      atomicAdd(count + key, 1);
    }
  }
  __syncthreads();
  Before below = {};
  Before all = {};
  for (int e = threadIdx.x / 32; e < E; e += SORT_WARPS) {
    Before b = of_expert(count + e * NA, NA, BM, BS);
    add(all, b);
    if (e < (int)blockIdx.x) {
      add(below, b);
    }
  }
  block_sum(below, all, part);
  place(in, {off, pairs, pos_of, tiles, shrink, seg, seg_of, nums, BM, BS}, below, all, count + blockIdx.x * NA, keys,
        nullptr, scratch, part);
}

// Lists each expert's pairs in order, at the rows that the expert gets: list [P]. Counts them: count [E * NA], and what the
// counts come to: summary [E, 4] rows, tiles, segments, shrink tiles. Marks dropped pairs. Grid: E blocks. Dynamic shared
// memory: NA words.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_pair_gather(const int* ids, const int* map, const int* adapter, const int* slot_active, int* count, int* summary,
                    int* list, int* pos_of, int P, int K, int num_global, int E, int NA, int BM, int BS) {
  extern __shared__ int shared[];
  __shared__ Before part[2][SORT_WARPS];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const Pairs in = {ids, map, adapter, slot_active, P, K, num_global, E, NA};
  for (int i = threadIdx.x; i < NA; i += THREADS) {
    shared[i] = 0;
  }
  wait_for_predecessor();
  const int steps = min(ROUND / THREADS, (P + THREADS - 1) / THREADS);
  unsigned word[2] = {};
  int below = 0;
  for (int first = 0; first < P; first += ROUND) {
    matches(in, pos_of, first, steps, word, below);
  }
  Before before = {__reduce_add_sync(FULL, below), 0, 0, 0};
  Before none = {};
  block_sum(before, none, part);
  const int row0 = before.rows;
  int row = row0;
  for (int first = 0; first < P; first += ROUND) {
    if (P > ROUND) {  // one round: its words are still there
      matches(in, pos_of, first, steps, word, below);
    }
    // The first words of all lanes come before the second words: two scans over the warp, side by side.
    int c0 = __popc(word[0]);
    int c1 = __popc(word[1]);
    int both = c0 | c1 << 16;
    int scan = both;
    for (int d = 1; d < 32; d <<= 1) {
      int v = __shfl_up_sync(FULL, scan, d);
      scan += lane >= d ? v : 0;
    }
    int total = __shfl_sync(FULL, scan, 31);
    scan -= both;
    int warp_total = (total & 0xffff) + (total >> 16);
    if (lane == 0) {
      part[0][warp].rows = warp_total;
    }
    __syncthreads();
    int other = part[0][lane].rows;
    int before_warp = __reduce_add_sync(FULL, lane < warp ? other : 0);
    int round_total = __reduce_add_sync(FULL, other);
    __syncthreads();
    int at[2] = {row + before_warp + (scan & 0xffff), row + before_warp + (total & 0xffff) + (scan >> 16)};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int p = first + (warp * steps + half * 32 + lane) * 32;
      for (unsigned w = word[half]; w != 0; w &= w - 1) {
        list[at[half]++] = p + __ffs(w) - 1;
      }
    }
    row += round_total;
  }
  __syncthreads();
  if (NA == 1) {
    if (threadIdx.x == 0) {
      shared[0] = row - row0;
    }
  } else {
    for (int i = row0 + threadIdx.x; i < row; i += THREADS) {
      atomicAdd(shared + in.column(list[i]), 1);
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < NA; i += THREADS) {
    count[blockIdx.x * NA + i] = shared[i];
  }
  if (warp == 0) {
    Before b = of_expert(shared, NA, BM, BS);
    if (lane == 0) {
      reinterpret_cast<int4*>(summary)[blockIdx.x] = make_int4(b.rows, b.tiles, b.segs, b.shrinks);
    }
  }
}

// Orders each expert's list by adapter. Grid: E blocks. Dynamic shared memory: (3 + SORT_WARPS) * NA words.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_pair_place(const int* ids, const int* map, const int* adapter, const int* slot_active, const int* count,
                   const int* summary, const int* list, int* off, int* pairs, int* pos_of, int* tiles, int* shrink,
                   int* seg, int* seg_of, int* nums, int P, int K, int num_global, int E, int NA, int BM, int BS) {
  extern __shared__ int shared[];
  __shared__ Before part[2][SORT_WARPS];
  wait_for_predecessor();
  int sums[8] = {};
  for (int e = threadIdx.x; e < E; e += THREADS) {
    int4 v = reinterpret_cast<const int4*>(summary)[e];
    int four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sums[i] += e < (int)blockIdx.x ? four[i] : 0;
      sums[4 + i] += four[i];
    }
  }
#pragma unroll
  for (int i = 0; i < 8; i++) {
    sums[i] = __reduce_add_sync(FULL, sums[i]);
  }
  Before below = {sums[0], sums[1], sums[2], sums[3]};
  Before all = {sums[4], sums[5], sums[6], sums[7]};
  block_sum(below, all, part);
  place({ids, map, adapter, slot_active, P, K, num_global, E, NA},
        {off, pairs, pos_of, tiles, shrink, seg, seg_of, nums, BM, BS}, below, all, count + blockIdx.x * NA, nullptr, list,
        shared, part);
}
