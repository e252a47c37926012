// Few pairs sorted by (expert, adapter) in one launch of one block: what clear, count and place of sort.py do in three. The lists are
// theirs, word for word; what a list means is said there. A forward of few tokens waits for this before its first weights, so it
// is latency that counts: everything is asked for at once, and all that is between loads and stores happens in shared memory.
//
// Key of a pair: expert * NA + slot + 1, or + 0 without adapter; NA = slots + 1, or 1 without LoRA. Counters are integers in shared
// memory, so which of a segment's pairs comes first is free, as it is there; no row's arithmetic depends on it.
#include <stdint.h>

namespace {

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr int EACH = 4;  // pairs a thread
constexpr unsigned FULL = 0xffffffffu;

// As in table.py.
constexpr int SLOT_WIDTH = 24;
constexpr int LIVE = 0;
constexpr int PAGES13 = 1;
constexpr int PAGES2 = 2;
constexpr int SHARED_A = 3;
constexpr int B_ADDR = 7;
constexpr int B_EXPERT = 13;
constexpr int B_ROW = 16;
constexpr int RANK = 19;
constexpr int PAGE = 16;
constexpr int TILE_WORDS = 8;
constexpr int SHRINK_WORDS = 4;

__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// v[i] of every thread becomes the sum of the threads before it, all[i] the sum of all.
template <int N>
__device__ __forceinline__ void scan(unsigned (&v)[N], unsigned (&all)[N], unsigned (*part)[WARPS]) {
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < N; i++) {
    unsigned s = v[i];
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const unsigned below = __shfl_up_sync(FULL, s, d);
      s += lane >= d ? below : 0;
    }
    if (lane == 31) {
      part[i][warp] = s;
    }
    v[i] = s - v[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; i++) {
    unsigned s = part[i][lane];
    const unsigned own = s;
#pragma unroll
    for (int d = 1; d < WARPS; d *= 2) {
      const unsigned below = __shfl_up_sync(FULL, s, d);
      s += lane >= d ? below : 0;
    }
    all[i] = __shfl_sync(FULL, s, WARPS - 1);
    v[i] += __shfl_sync(FULL, s - own, warp);
  }
  __syncthreads();
}

// One page of a segment, see page_word of sort.py.
__device__ __forceinline__ int64_t page_word(int seg, int j, int64_t row_first, int64_t row_second, int64_t rank_first,
                                             int64_t rank_second, int64_t shared) {
  const int64_t v1 = min(max((int)rank_first - j * PAGE, 0), PAGE) / 8;
  const int64_t v2 = min(max((int)rank_second - j * PAGE, 0), PAGE) / 8;
  return seg | (row_first / 8) << 32 | (row_second / 8) << 40 | (int64_t)j << 48 | v1 << 56 | v2 << 58 | shared << 60;
}

struct Lists {
  int *pairs, *pos_of, *seg_of, *tiles, *shrink, *nums, *total;
  int64_t *pg13a, *pg13b, *pg13m, *pg2a, *pg2m;
  int* arrived;
};

template <bool LORA>
__device__ __forceinline__ void sort(const int* ids, const int* map, const int* mapping, const int64_t* table, const Lists& to, int P,
                                     int topk, int num_global, int E, int NA, int BM, int BS, int counters) {
  extern __shared__ int64_t shared[];
  __shared__ unsigned part[5][WARPS];
  const int keys = E * NA;
  const int slots = LORA ? NA - 1 : 0;
  const int segments = LORA ? min(P, E * slots) : 0;
  int64_t* slot_rows = shared;                                  // the slot table
  unsigned* count = (unsigned*)(slot_rows + slots * SLOT_WIDTH);  // a key's pairs; then its first row << 16 | its pairs
  unsigned* mark = count + keys;                                // LORA: a key's segment << 16 | its first shrink tile
  int* expert_row = (int*)(mark + (LORA ? keys : 0));           // an expert's first row, and all rows
  int* expert_tile = expert_row + E + 1;                        // an expert's first tile
  int* sorted = expert_tile + E;                                // pairs in the order of rows
  int* sorted_seg = sorted + P;                                 // LORA: segments of rows
  int* seg_key = sorted_seg + (LORA ? P : 0);
  unsigned* seg13 = (unsigned*)(seg_key + segments);            // a segment's first page, and all pages
  unsigned* seg2 = seg13 + segments + 1;
  const int tid = threadIdx.x;
  for (int i = tid; i < keys; i += THREADS) {
    count[i] = 0;
  }
  wait_for_predecessor();
  int id[EACH];
  int slot[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int p = tid + i * THREADS;
    id[i] = p < P ? ids[p] : -1;
    slot[i] = LORA && p < P ? mapping[p / topk] : -1;
  }
  for (int i = tid; i < slots * SLOT_WIDTH; i += THREADS) {
    slot_rows[i] = table[i];
  }
  for (int i = tid; i < counters; i += THREADS) {
    to.arrived[i] = 0;
  }
  if (map != nullptr) {
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      id[i] = (unsigned)id[i] < (unsigned)num_global ? map[id[i]] : -1;
    }
  }
  __syncthreads();
  int key[EACH];
  int rank[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const bool ok = (unsigned)id[i] < (unsigned)E;
    const bool adapted = LORA && (unsigned)slot[i] < (unsigned)slots && slot_rows[slot[i] * SLOT_WIDTH + LIVE] != 0;
    slot[i] = adapted ? slot[i] : -1;
    key[i] = ok ? id[i] * NA + slot[i] + 1 : -1;
    rank[i] = ok ? (int)atomicAdd(count + key[i], 1u) : 0;
  }
  __syncthreads();
  // What lies before each key: rows, and with LoRA segments, shrink tiles and pages.
  constexpr int SUMS = LORA ? 5 : 1;
  unsigned before[SUMS] = {};
  unsigned all[SUMS];
  const int share = (keys + THREADS - 1) / THREADS;
  const int key0 = min(tid * share, keys);
  const int key1 = min(key0 + share, keys);
  const int a0 = key0 % NA;
  for (int x = key0, a = a0; x < key1; x++, a = a + 1 == NA ? 0 : a + 1) {
    const unsigned c = count[x];
    before[0] += c;
    if (LORA && a > 0 && c > 0) {
      const int64_t* row = slot_rows + (a - 1) * SLOT_WIDTH;
      before[1]++;
      before[2] += (c + BS - 1) / BS;
      before[3] += (unsigned)row[PAGES13];
      before[4] += (unsigned)row[PAGES2];
    }
  }
  scan(before, all, part);
  for (int x = key0, a = a0; x < key1; x++, a = a + 1 == NA ? 0 : a + 1) {
    const unsigned c = count[x];
    count[x] = before[0] << 16 | c;
    if (a == 0) {
      expert_row[x / NA] = before[0];
    }
    before[0] += c;
    if (LORA) {
      mark[x] = before[1] << 16 | before[2];
      if (a > 0 && c > 0) {
        const int64_t* row = slot_rows + (a - 1) * SLOT_WIDTH;
        seg_key[before[1]] = x;
        seg13[before[1]] = before[3];
        seg2[before[1]] = before[4];
        before[1]++;
        before[2] += (c + BS - 1) / BS;
        before[3] += (unsigned)row[PAGES13];
        before[4] += (unsigned)row[PAGES2];
      }
    }
  }
  if (tid == 0) {
    expert_row[E] = all[0];
    *to.total = all[0];
    if (LORA) {
      seg13[all[1]] = all[3];
      seg2[all[1]] = all[4];
      to.nums[1] = all[2];
    }
  }
  __syncthreads();
  unsigned tiles[1] = {tid < E ? (unsigned)(expert_row[tid + 1] - expert_row[tid] + BM - 1) / BM : 0};
  unsigned all_tiles[1];
  scan(tiles, all_tiles, part);
  if (tid < E) {
    expert_tile[tid] = tiles[0];
  }
  if (tid == 0) {
    to.nums[0] = all_tiles[0];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int p = tid + i * THREADS;
    if (p < P) {
      int pos = -1;
      if (key[i] >= 0) {
        const int e = id[i];
        const unsigned at = count[key[i]];
        const int first = at >> 16;
        const int row0 = expert_row[e];
        const int row1 = expert_row[e + 1];
        pos = first + rank[i];
        sorted[pos] = p;
        const int q = pos - row0;
        int* tile = to.tiles + (size_t)(expert_tile[e] + q / BM) * TILE_WORDS;
        const bool opens = q % BM == 0;
        const int end = min(pos + BM, row1);
        if (opens) {
          tile[0] = e;
          tile[1] = pos;
          tile[2] = end;
        }
        if (LORA) {
          // A row without adapter has the mark of the expert's first segment.
          const int seg = mark[key[i]] >> 16;
          const int adapted0 = max(pos, (int)(count[e * NA + 1] >> 16));
          sorted_seg[pos] = slot[i] >= 0 ? seg : -1;
          if (opens) {
            tile[3] = adapted0;
            tile[4] = adapted0 < end ? seg13[seg] : 0;
            tile[6] = adapted0 < end ? seg2[seg] : 0;
          }
          if (q % BM == BM - 1 || pos == row1 - 1) {
            tile[5] = slot[i] >= 0 ? seg13[seg + 1] : 0;
            tile[7] = slot[i] >= 0 ? seg2[seg + 1] : 0;
          }
          if (slot[i] >= 0 && rank[i] % BS == 0) {
            int* s = to.shrink + (size_t)((mark[key[i]] & 0xffff) + rank[i] / BS) * SHRINK_WORDS;
            s[0] = e;
            s[1] = pos;
            s[2] = min(pos + BS, first + (int)(at & 0xffff));
            s[3] = slot[i];
          }
        }
      }
      to.pos_of[p] = pos;
    }
  }
  if (LORA) {
    for (int seg = tid; seg < (int)all[1]; seg += THREADS) {
      const int e = seg_key[seg] / NA;
      const int64_t* row = slot_rows + (seg_key[seg] % NA - 1) * SLOT_WIDTH;
      const int64_t shared_a = row[SHARED_A];
      const int64_t b1 = row[B_ADDR] + row[B_EXPERT] * e;
      const int64_t b2 = row[B_ADDR + 1] + row[B_EXPERT + 1] * e;
      const int64_t b3 = row[B_ADDR + 2] + row[B_EXPERT + 2] * e;
      const int first13 = seg13[seg];
      const int pages13 = seg13[seg + 1] - first13;
      for (int j = 0; j < pages13; j++) {
        to.pg13a[first13 + j] = (b1 + j * PAGE) / 8;
        to.pg13b[first13 + j] = (b2 + j * PAGE) / 8;
        to.pg13m[first13 + j] = page_word(seg, j, row[B_ROW], row[B_ROW + 1], row[RANK], row[RANK + 1], shared_a);
      }
      const int first2 = seg2[seg];
      const int pages2 = seg2[seg + 1] - first2;
      for (int j = 0; j < pages2; j++) {
        to.pg2a[first2 + j] = (b3 + j * PAGE) / 8;
        to.pg2m[first2 + j] = page_word(seg, j, row[B_ROW + 2], row[B_ROW + 2], row[RANK + 2], row[RANK + 2], shared_a);
      }
    }
  }
  __syncthreads();
  for (int i = tid; i < (int)all[0]; i += THREADS) {
    to.pairs[i] = sorted[i];
    if (LORA) {
      to.seg_of[i] = sorted_seg[i];
    }
  }
}

}  // namespace

// ids [P] global experts, map [num_global] or null, mapping [P / topk] slots, table [NA - 1, SLOT_WIDTH]; total: all rows; arrived
// [counters] is cleared. P at most THREADS * EACH, E at most THREADS. Grid: 1. Dynamic shared memory: SortLaunches.sharedBytes.
#define SORT(LORA)                                                                                                                       \
  extern "C" __global__ void __launch_bounds__(THREADS) moe_sort_##LORA(                                                                 \
      const int* ids, const int* map, const int* mapping, const int64_t* table, int* pairs, int* pos_of, int* seg_of, int* tiles,        \
      int* shrink, int* nums, int* total, int64_t* pg13a, int64_t* pg13b, int64_t* pg13m, int64_t* pg2a, int64_t* pg2m, int* arrived,    \
      int P, int topk, int num_global, int E, int NA, int BM, int BS, int counters) {                                                    \
    sort<LORA>(ids, map, mapping, table,                                                                                                 \
               {pairs, pos_of, seg_of, tiles, shrink, nums, total, pg13a, pg13b, pg13m, pg2a, pg2m, arrived}, P, topk, num_global, E, NA, \
               BM, BS, counters);                                                                                                        \
  }
SORT(0)
SORT(1)
