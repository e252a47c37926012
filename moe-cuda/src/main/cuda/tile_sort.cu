// Pairs sorted by (expert, adapter) in one launch: what clear, count, place and scatter of sort.py do in three or four. The lists are
// theirs, word for word; what a list means is said there. A forward waits for this before its first weights, so it is latency
// that counts: everything is asked for at once, and what is between loads and stores happens in shared memory.
//
// The grid is one block, or from 9.0 on one cluster of them. A block counts its own part of the pairs; then every block adds
// up the counts of all, so that each knows where its pairs go without a word through global memory.
//
// Key of a pair: expert * NA + slot + 1, or + 0 without adapter; NA = slots + 1, or 1 without LoRA. Counters are integers in shared
// memory, so which of a segment's pairs comes first is free, as it is there; no row's arithmetic depends on it.
#include "table.cuh"

namespace {

constexpr int THREADS = 1024;
constexpr int WARPS = THREADS / 32;
constexpr int EACH = 8;  // pairs a thread
constexpr int MOST_BLOCKS = 8;
constexpr int LISTERS = 4;  // threads that list a segment's pages
constexpr int PAIR_BITS = 13;  // of a pair's place in its block's part
static_assert(THREADS * EACH <= 1 << PAIR_BITS, "");

// As in table.py and sort.py.
constexpr int PAGE = 16;
constexpr int TILE_WORDS = 8;
constexpr int SHRINK_WORDS = 4;

__device__ __forceinline__ int block_of_cluster() {
#if __CUDA_ARCH__ >= 900
  int r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
#else
  return 0;
#endif
}

__device__ __forceinline__ void sync(int blocks) {
#if __CUDA_ARCH__ >= 900
  if (blocks > 1) {
    asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
    return;
  }
#endif
  __syncthreads();
}

// What another block of the cluster has at this place of its shared memory.
__device__ __forceinline__ unsigned remote(const unsigned* p, int block) {
#if __CUDA_ARCH__ >= 900
  unsigned at;
  unsigned v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((unsigned)__cvta_generic_to_shared(p)), "r"(block));
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(at) : "memory");
  return v;
#else
  return *p;
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

// A quarter of a segment's pages, those of `lane`, so that neighbouring lanes write side by side. A segment: the pairs of one slot (a row of the
// table) with one expert.
__device__ __forceinline__ void list_pages(const Lists& to, const int64_t* row, int e, int seg, unsigned first13, unsigned first2, int lane) {
  const int64_t shared_a = row[SHARED_A];
  const int64_t b1 = row[B_ADDR] + row[B_EXPERT] * e;
  const int64_t b2 = row[B_ADDR + 1] + row[B_EXPERT + 1] * e;
  const int64_t b3 = row[B_ADDR + 2] + row[B_EXPERT + 2] * e;
  for (int j = lane; j < (int)row[PAGES13]; j += LISTERS) {
    to.pg13a[first13 + j] = (b1 + j * PAGE) / 8;
    to.pg13b[first13 + j] = (b2 + j * PAGE) / 8;
    to.pg13m[first13 + j] = page_word(seg, j, row[B_ROW], row[B_ROW + 1], row[RANK], row[RANK + 1], shared_a);
  }
  for (int j = lane; j < (int)row[PAGES2]; j += LISTERS) {
    to.pg2a[first2 + j] = (b3 + j * PAGE) / 8;
    to.pg2m[first2 + j] = page_word(seg, j, row[B_ROW + 2], row[B_ROW + 2], row[RANK + 2], row[RANK + 2], shared_a);
  }
}

template <bool LORA>
__device__ __forceinline__ void sort(const int* ids, const int* map, const int* mapping, const int64_t* table, const Lists& to, int P,
                                     int topk, int num_global, int E, int NA, int BM, int BS, int counters) {
  extern __shared__ int64_t shared[];
  constexpr int SUMS = LORA ? 6 : 2;
  __shared__ unsigned part[SUMS][WARPS];
  const int blocks = gridDim.x;
  const int block = block_of_cluster();
  const int keys = E * NA;
  const int slots = LORA ? NA - 1 : 0;
  const int chunk = (P + blocks - 1) / blocks;
  const int pair0 = min(block * chunk, P);
  const int own = min(chunk, P - pair0);
  int64_t* slot_rows = shared;                                    // the slot table
  unsigned* count = (unsigned*)(slot_rows + slots * SLOT_WIDTH);  // a key's pairs of this block; then which of its pairs is the first
  unsigned* place = count + keys;                                 // a key's pairs of all blocks; then its first row
  int* mine = (int*)(place + keys + 1);                           // of blocks before this one; then what to add to a pair's place here
  unsigned* mark = (unsigned*)(mine + keys);                      // LORA: a key's segment << 16 | its first shrink tile
  unsigned* page13 = mark + (LORA ? keys : 0);                    // LORA: a key's first page of w13
  unsigned* page2 = page13 + (LORA ? keys : 0);                   // LORA: and of w2
  int* expert_tile = (int*)(page2 + (LORA ? keys : 0));           // an expert's first tile
  unsigned* sorted = (unsigned*)(expert_tile + E);                // key << PAIR_BITS | pair, in the order of rows
  const int tid = threadIdx.x;
  for (int i = tid; i < keys; i += THREADS) {
    count[i] = 0;
  }
  wait_for_predecessor();
  launch_dependents();
  int id[EACH];
  int slot[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int p = tid + i * THREADS;
    id[i] = p < own ? ids[pair0 + p] : -1;
    slot[i] = LORA && p < own ? mapping[(pair0 + p) / topk] : -1;
  }
  for (int i = tid; i < slots * SLOT_WIDTH; i += THREADS) {
    slot_rows[i] = table[i];
  }
  for (int i = block * THREADS + tid; i < counters; i += blocks * THREADS) {
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
    key[i] = ok ? id[i] * NA + (adapted ? slot[i] + 1 : 0) : -1;
    rank[i] = ok ? (int)atomicAdd(count + key[i], 1u) : 0;
  }
  sync(blocks);
  // What lies before each key: rows, this block's rows, and with LoRA segments, shrink tiles and pages.
  unsigned before[SUMS] = {};
  unsigned all[SUMS];
  const int share = (keys + THREADS - 1) / THREADS;
  const int key0 = min(tid * share, keys);
  const int key1 = min(key0 + share, keys);
  const int a0 = key0 % NA;
  for (int x = key0, a = a0; x < key1; x++, a = a + 1 == NA ? 0 : a + 1) {
    unsigned c = count[x];
    unsigned earlier = 0;
    before[1] += c;
    if (blocks > 1) {
      unsigned v[MOST_BLOCKS];
#pragma unroll
      for (int b = 0; b < MOST_BLOCKS; b++) {
        v[b] = b < blocks ? remote(count + x, b) : 0;
      }
      c = 0;
#pragma unroll
      for (int b = 0; b < MOST_BLOCKS; b++) {
        earlier += b < block ? v[b] : 0;
        c += v[b];
      }
    }
    place[x] = c;
    mine[x] = earlier;
    before[0] += c;
    if (LORA && a > 0 && c > 0) {
      const int64_t* row = slot_rows + (a - 1) * SLOT_WIDTH;
      before[2]++;
      before[3] += (c + BS - 1) / BS;
      before[4] += (unsigned)row[PAGES13];
      before[5] += (unsigned)row[PAGES2];
    }
  }
  scan(before, all, part);
  sync(blocks);  // nobody reads this block's counts any more
  for (int x = key0, a = a0; x < key1; x++, a = a + 1 == NA ? 0 : a + 1) {
    const unsigned c = place[x];
    const unsigned here = count[x];
    place[x] = before[0];
    mine[x] += before[0] - before[1];
    count[x] = before[1];
    before[0] += c;
    before[1] += here;
    if (LORA) {
      mark[x] = before[2] << 16 | before[3];
      page13[x] = before[4];
      page2[x] = before[5];
      if (a > 0 && c > 0) {
        if (blocks == 1) {
          sorted[before[2]] = x;  // a segment's key: its place is not needed yet, and no block has more segments than pairs
        }
        const int64_t* row = slot_rows + (a - 1) * SLOT_WIDTH;
        before[2]++;
        before[3] += (c + BS - 1) / BS;
        before[4] += (unsigned)row[PAGES13];
        before[5] += (unsigned)row[PAGES2];
      }
    }
  }
  if (tid == 0) {
    place[keys] = all[0];
    if (block == 0) {
      *to.total = all[0];
      if (LORA) {
        to.nums[1] = all[3];
      }
    }
  }
  __syncthreads();
  if (LORA) {
    // Most keys have no pair: one block goes through the segments only.
    const int listed = blocks == 1 ? (int)all[2] : keys;
    for (int i = block * THREADS + tid; i < listed * LISTERS; i += blocks * THREADS) {
      const int x = blocks == 1 ? (int)sorted[i / LISTERS] : i / LISTERS;
      const int e = x / NA;
      const int a = x - e * NA;
      if (a > 0 && place[x + 1] > place[x]) {
        list_pages(to, slot_rows + (a - 1) * SLOT_WIDTH, e, mark[x] >> 16, page13[x], page2[x], i % LISTERS);
      }
    }
  }
  unsigned tiles[1] = {tid < E ? (place[(tid + 1) * NA] - place[tid * NA] + BM - 1) / BM : 0};
  unsigned all_tiles[1];
  scan(tiles, all_tiles, part);
  if (tid < E) {
    expert_tile[tid] = tiles[0];
  }
  if (tid == 0 && block == 0) {
    to.nums[0] = all_tiles[0];
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int p = tid + i * THREADS;
    if (p < own) {
      int pos = -1;
      if (key[i] >= 0) {
        const int at = count[key[i]] + rank[i];
        sorted[at] = (unsigned)key[i] << PAIR_BITS | p;
        pos = mine[key[i]] + at;
      }
      to.pos_of[pair0 + p] = pos;
    }
  }
  __syncthreads();
  for (int i = tid; i < (int)all[1]; i += THREADS) {
    const int x = sorted[i] >> PAIR_BITS;
    const int e = x / NA;
    const int a = x - e * NA;
    const int pos = mine[x] + i;
    const int row0 = place[e * NA];
    const int row1 = place[e * NA + NA];
    to.pairs[pos] = pair0 + (sorted[i] & ((1 << PAIR_BITS) - 1));
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
      // A row without adapter has the mark and the pages of the expert's first segment.
      const int64_t* row = slot_rows + (a - 1) * SLOT_WIDTH;
      to.seg_of[pos] = a > 0 ? (int)(mark[x] >> 16) : -1;
      if (opens) {
        const int adapted0 = max(pos, (int)place[e * NA + 1]);
        tile[3] = adapted0;
        tile[4] = adapted0 < end ? page13[x] : 0;
        tile[6] = adapted0 < end ? page2[x] : 0;
      }
      if (q % BM == BM - 1 || pos == row1 - 1) {
        tile[5] = a > 0 ? page13[x] + (int)row[PAGES13] : 0;
        tile[7] = a > 0 ? page2[x] + (int)row[PAGES2] : 0;
      }
      const int r = pos - (int)place[x];
      if (a > 0 && r % BS == 0) {
        int* s = to.shrink + (size_t)((mark[x] & 0xffff) + r / BS) * SHRINK_WORDS;
        s[0] = e;
        s[1] = pos;
        s[2] = min(pos + BS, (int)place[x + 1]);
        s[3] = a - 1;
      }
    }
  }
}

}  // namespace

// ids [P] global experts, map [num_global] or null, mapping [P / topk] slots, table [NA - 1, SLOT_WIDTH]; total: all rows; arrived
// [counters] is cleared. E at most THREADS; grid: one cluster of 1 to 8 blocks with at most THREADS * EACH pairs each. Dynamic shared
// memory: TileSort.sharedBytes.
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
