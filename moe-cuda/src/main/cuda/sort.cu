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
// Few pairs: one launch of moe_pair_sort, every block counts everything for itself. Many: moe_pair_count first, then
// moe_pair_place. In all of them a block serves one expert, so what it costs does not depend on how tokens are spread.
#include "common.cuh"

namespace moe {

constexpr int THREADS = 1024;
constexpr int SORT_WARPS = THREADS / 32;
constexpr unsigned FULL = 0xffffffffu;
constexpr unsigned short DROPPED = 0xffff;
constexpr int AHEAD = 4;  // steps whose loads are in flight together

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

// Everything but counting. count [E * NA] may be shared or global; keys [P] (shared) or null: then pairs are looked up again.
__device__ void place(const Pairs in, const Plan out, const int* count, const unsigned short* keys, int* scratch) {
  const int x = blockIdx.x;
  const int NA = in.NA;
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  int* base = scratch;                  // [NA] next free row
  int* seg_id = base + NA;              // [NA]
  int* shrink_at = seg_id + NA;         // [NA]
  int* table = shrink_at + NA;          // [SORT_WARPS][NA]
  __shared__ Before part[2][SORT_WARPS];  // before this expert; all
  __shared__ Before sum[2];

  // What lies before this expert, by reductions over all counts: a warp takes every 32nd expert.
  Before below = {};
  Before all = {};
  for (int e = warp; e < in.E; e += SORT_WARPS) {
    int rows = 0;
    int segs = 0;
    int shrinks = 0;
    for (int a = lane; a < NA; a += 32) {
      int c = count[e * NA + a];
      rows += c;
      if (a > 0) {
        segs += c > 0;
        shrinks += (c + out.BS - 1) / out.BS;
      }
    }
    rows = __reduce_add_sync(FULL, rows);
    segs = __reduce_add_sync(FULL, segs);
    shrinks = __reduce_add_sync(FULL, shrinks);
    int tiles = (rows + out.BM - 1) / out.BM;
    all.rows += rows;
    all.tiles += tiles;
    all.segs += segs;
    all.shrinks += shrinks;
    if (e < x) {
      below = all;
    }
  }
  if (lane == 0) {
    part[0][warp] = below;
    part[1][warp] = all;
  }
  for (int i = threadIdx.x; i < SORT_WARPS * NA; i += THREADS) {
    table[i] = 0;
  }
  __syncthreads();
  if (warp < 2) {
    Before p = part[warp][lane];
    Before s = {__reduce_add_sync(FULL, p.rows), __reduce_add_sync(FULL, p.tiles), __reduce_add_sync(FULL, p.segs),
                __reduce_add_sync(FULL, p.shrinks)};
    if (lane == 0) {
      sum[warp] = s;
    }
  }
  __syncthreads();
  const Before before = sum[0];
  if (x == 0 && threadIdx.x == 0) {
    out.nums[0] = sum[1].tiles;
    out.nums[1] = sum[1].shrinks;
    out.nums[2] = sum[1].rows;
    out.nums[3] = sum[1].segs;
    out.off[in.E * NA] = sum[1].rows;
  }

  // This expert's adapters: three scans side by side.
  if (warp == 0) {
    Before run = before;
    for (int a0 = 0; a0 < NA; a0 += 32) {
      int a = a0 + lane;
      int c = a < NA ? count[x * NA + a] : 0;
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

  // Each warp owns a stretch of pairs: count them by adapter, scan over warps, then hand out rows in the pairs' order.
  const int stretch = (in.P + THREADS - 1) / THREADS * 32;
  const int begin = warp * stretch;
  const int end = min(begin + stretch, in.P);
  int* own = table + warp * NA;
  for (int p0 = begin; p0 < end; p0 += 32 * AHEAD) {
    int e[AHEAD];
    for (int i = 0; i < AHEAD; i++) {
      int p = p0 + 32 * i + lane;
      e[i] = p >= end ? -1 : keys == nullptr ? in.expert(p) : keys[p] == DROPPED ? -1 : keys[p] / NA;
    }
    for (int i = 0; i < AHEAD; i++) {
      int p = p0 + 32 * i + lane;
      if (e[i] == x) {
        atomicAdd(own + (keys == nullptr ? in.column(p) : keys[p] % NA), 1);
      }
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
  for (int p0 = begin; p0 < end; p0 += 32 * AHEAD) {
    int e[AHEAD];
    for (int i = 0; i < AHEAD; i++) {
      int p = p0 + 32 * i + lane;
      e[i] = p >= end ? -2 : keys == nullptr ? in.expert(p) : keys[p] == DROPPED ? -1 : keys[p] / NA;
    }
    for (int i = 0; i < AHEAD; i++) {
      int p = p0 + 32 * i + lane;
      if (x == 0 && e[i] == -1) {
        out.pos_of[p] = -1;
      }
      unsigned here = __ballot_sync(FULL, e[i] == x);
      if (e[i] == x) {
        int a = keys == nullptr ? in.column(p) : keys[p] % NA;
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
}

}  // namespace moe

using namespace moe;

// Grid: E blocks. Dynamic shared memory: E * NA + (3 + SORT_WARPS) * NA words, then P halfwords.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_pair_sort(const int* ids, const int* map, const int* adapter, const int* slot_active, int* off, int* pairs,
                  int* pos_of, int* tiles, int* shrink, int* seg, int* seg_of, int* nums, int P, int K, int num_global,
                  int E, int NA, int BM, int BS) {
  extern __shared__ int shared[];
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
  place(in, {off, pairs, pos_of, tiles, shrink, seg, seg_of, nums, BM, BS}, count, keys, scratch);
}

// Pairs of each key, count [E * NA]. Grid: E blocks. Dynamic shared memory: NA words.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_pair_count(const int* ids, const int* map, const int* adapter, const int* slot_active, int* count, int P, int K,
                   int num_global, int E, int NA) {
  extern __shared__ int shared[];
  const Pairs in = {ids, map, adapter, slot_active, P, K, num_global, E, NA};
  for (int i = threadIdx.x; i < NA; i += THREADS) {
    shared[i] = 0;
  }
  wait_for_predecessor();
  __syncthreads();
  for (int p0 = threadIdx.x; p0 < P; p0 += THREADS * AHEAD) {
    int e[AHEAD];
    for (int i = 0; i < AHEAD; i++) {
      int p = p0 + i * THREADS;
      e[i] = p < P ? in.expert(p) : -1;
    }
    for (int i = 0; i < AHEAD; i++) {
      if (e[i] == (int)blockIdx.x) {
        atomicAdd(shared + in.column(p0 + i * THREADS), 1);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < NA; i += THREADS) {
    count[blockIdx.x * NA + i] = shared[i];
  }
}

// Grid: E blocks. Dynamic shared memory: (3 + SORT_WARPS) * NA words.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    moe_pair_place(const int* ids, const int* map, const int* adapter, const int* slot_active, const int* count, int* off,
                   int* pairs, int* pos_of, int* tiles, int* shrink, int* seg, int* seg_of, int* nums, int P, int K,
                   int num_global, int E, int NA, int BM, int BS) {
  extern __shared__ int shared[];
  wait_for_predecessor();
  place({ids, map, adapter, slot_active, P, K, num_global, E, NA},
        {off, pairs, pos_of, tiles, shrink, seg, seg_of, nums, BM, BS}, count, nullptr, shared);
}
