// The fast kernels for one type of factors and x: one launch that shrinks and expands, or a launch each.
#pragma once
#include "staged.cuh"

namespace lora {

// Warps that share the ranks of a tile: a warp holds the sums of up to 64.
template <int NT>
constexpr int RANK_WARPS = NT > 8 ? NT / 8 : 1;

struct Input {
  const void* x;
  long long row;  // elements from one row to the next
  int per_pair;   // whether x has a row a pair, or one a token
  int in;
};

// The rows of x and y that a block works on; in shared memory.
template <int WM>
struct Rows {
  float factor[16 * WM];
  int pair[16 * WM];
  long long y[16 * WM];  // element where the row of y begins

  __device__ __forceinline__ void load(const Tiles& tiles, const float* weights, long long y_row, int row0, int rows) {
    const int i = threadIdx.x;
    if (i < 16 * WM) {
      const int p = i < rows ? tiles.pair(row0 + i) : 0;
      pair[i] = p;
      y[i] = p * y_row;
      factor[i] = i < rows && weights != nullptr ? weights[p] : 1.0f;
    }
  }

  template <class T>
  __device__ __forceinline__ const T* x(const Input& from, int row, int rows, int K) const {
    if (row >= rows) {
      return nullptr;
    }
    return reinterpret_cast<const T*>(from.x) + (from.per_pair ? pair[row] : pair[row] / K) * from.row;
  }
};

__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned n;
  asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(n));
  return n;
#else
  return 1;
#endif
}

__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ const float* of_block(const float* own, unsigned block) {
#if __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(const_cast<float*>(own), block);
#else
  return own;
#endif
}

// Starts fetching this part's rows of B: they are wanted as soon as the ranks are known.
template <class T>
__device__ __forceinline__ void prefetch_b(const Ranks& r, const Output& to, int slices, int group, int end) {
  const int groups = (to.out + GROUP - 1) / GROUP;
  const bool alternate = to.interleaved && slices > 1;
  for (int s = 0; s < slices; s++) {
    const int rank = s == 0 ? r.rank0 : r.rank1;
    const char* b = reinterpret_cast<const char*>(s == 0 ? r.b0 : r.b1);
    const long long row_bytes = (s == 0 ? r.b_row0 : r.b_row1) * (long long)sizeof(T);
    if (rank == 0) {
      continue;
    }
    long long from = alternate ? (long long)group * (GROUP / 2) : (long long)(group - s * groups) * GROUP;
    long long to_row = alternate ? (long long)end * (GROUP / 2) : (long long)(end - s * groups) * GROUP;
    from = max(0ll, from) * row_bytes;
    to_row = min((long long)to.out, to_row) * row_bytes;
    for (long long at = from + threadIdx.x * 128; at < to_row; at += WARPS * 32 * 128) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(b + at));
    }
  }
}

// Whether all blocks of the launch run at once, two a multiprocessor.
__device__ __forceinline__ bool one_wave() {
  unsigned multiprocessors;
  asm("mov.u32 %0, %%nsmid;" : "=r"(multiprocessors));
  return gridDim.x * gridDim.y <= 2 * multiprocessors;
}

__device__ __forceinline__ int groups_of(const Output& to, int slices) {
  return to.interleaved && slices > 1 ? (2 * to.out + GROUP - 1) / GROUP
                                      : slices * ((to.out + GROUP - 1) / GROUP);
}

// A cluster of C blocks a tile (and part of y's columns, blockIdx.y): each block shrinks over its C-th of the contraction,
// all exchange their sums, each expands its C-th of the columns. max_columns sizes shared memory.
template <class T, class Y, int ROWS, int NT>
__device__ __forceinline__ void one_shot(const Input from, const Output to, const Factor* table, const Pairs pairs,
                                         const Tiles tiles, const float* weights, int target, int slices,
                                         int max_columns) {
  using S = Staged<ROWS, NT>;
  constexpr int WM = S::WM;
  constexpr int PLANES = S::WK > 1 ? S::WK / 2 : 1;
  extern __shared__ __align__(128) unsigned char shared[];
  float* sums = reinterpret_cast<float*>(shared);  // where the stages were
  unsigned char* high = shared + PLANES * ROWS * sum_row(NT * 8) * sizeof(float);
  unsigned char* low = high + ROWS * rank_row_bytes(NT * 8);
  __shared__ Rows<WM> rows_of;
  wait_for_predecessor();

  const unsigned C = cluster_size();
  const unsigned own = blockIdx.x % C;
  int expert, slot, row0, rows;
  if (!tiles.find(blockIdx.x / C, pairs, expert, slot, row0, rows)) {
    return;
  }
  Ranks r = {};
  if (!r.load<T>(table, slot, target, slices, expert)) {
    return;
  }
  if (r.columns > max_columns) {
    __trap();  // a captured launch, and an adapter that came later with ranks it has no room for
  }
  rows_of.load(tiles, weights, to.row, row0, rows);
  const int groups = groups_of(to, slices);
  const unsigned parts = C * gridDim.y;
  const unsigned part = blockIdx.y * C + own;
  const int group = (long long)groups * part / parts;
  const int group_end = (long long)groups * (part + 1) / parts;
  // In several waves other blocks' expands overlap with this shrink, which only waits longer.
  if (ROWS == 16 && one_wave()) {
    prefetch_b<T>(r, to, slices, group, group_end);
  }
  __syncthreads();

  const int row_floats = sum_row(r.columns);
  {
    const int stages = (from.in + S::DEPTH - 1) / S::DEPTH;
    float acc[S::NI][4];
    shrink_staged<T, ROWS, NT>(acc, shared, r, from.in, stages * own / C, stages * (own + 1) / C,
                               [&](int row) { return rows_of.template x<T>(from, row, rows, pairs.K); });
    for (int i = 0; i < AHEAD; i++) {
      prefetch_y<Y, WM>(to, slices, rows_of.y, rows, group + i * WARPS, group_end);
    }
    block_sums<WM, S::WN>(acc, sums, row_floats, r.columns);
  }
  const int row_bytes = rank_row_bytes(r.columns);
  if (C > 1) {
    cluster_arrive();
    cluster_wait();
    split_rows<T>(high, low, rows_of.factor, rows, ROWS, r, row_bytes, [&](int row, int c) {
      float v = 0.0f;
      for (unsigned i = 0; i < C; i++) {
        v += of_block(sums, i)[row * row_floats + c];
      }
      return v;
    });
    cluster_arrive();
  } else {
    split_rows<T>(high, low, rows_of.factor, rows, ROWS, r, row_bytes,
                  [&](int row, int c) { return sums[row * row_floats + c]; });
  }
  __syncthreads();
  expand_rows<T, Y, WM>(to, r, slices, high, low, row_bytes, rows_of.factor, rows_of.y, rows, group, group_end);
  if (C > 1) {
    cluster_wait();  // nobody leaves while another reads its sums
  }
}

// Ranks [128 z, 128 z + 128) of a tile over the y-th part of the contraction, to part[y][row][max_columns].
template <class T, int WM, int NT>
__device__ __forceinline__ void shrink(const Input from, float* part, const Factor* table, const Pairs pairs,
                                       const Tiles tiles, int target, int slices, int max_columns) {
  extern __shared__ __align__(128) unsigned char shared[];
  float* sums = reinterpret_cast<float*>(shared);
  __shared__ Rows<WM> rows_of;
  wait_for_predecessor();
  int expert, slot, row0, rows;
  if (!tiles.find(blockIdx.x, pairs, expert, slot, row0, rows)) {
    return;
  }
  Ranks r = {};
  const int column0 = blockIdx.z * NT * 8;
  if (!r.load<T>(table, slot, target, slices, expert) || column0 >= r.columns) {
    return;
  }
  if (r.columns > max_columns) {
    __trap();
  }
  rows_of.load(tiles, nullptr, 0, row0, rows);
  __syncthreads();
  const int columns = min(r.columns - column0, NT * 8);
  const int row_floats = sum_row(columns);
  const int warp = threadIdx.x / 32;
  const int row = warp % WM * 16 + threadIdx.x % 32 / 4;
  const int steps = (from.in + STEP - 1) / STEP;
  const int begin = steps * blockIdx.y / gridDim.y;
  const int end = steps * (blockIdx.y + 1) / gridDim.y;
  constexpr int WN = RANK_WARPS<NT>;
  float acc[NT / WN][4];
  shrink_rows<T, WM, WN>(acc, rows_of.template x<T>(from, row, rows, pairs.K), rows_of.template x<T>(from, row + 8, rows, pairs.K),
                     r, column0, from.in, begin, end);
  block_sums<WM, WN>(acc, sums, row_floats, columns);
  float* out = part + ((size_t)blockIdx.y * pairs.P + row0) * max_columns + column0;
  for (int i = threadIdx.x; i < rows * columns; i += WARPS * 32) {
    out[(size_t)(i / columns) * max_columns + i % columns] = sums[i / columns * row_floats + i % columns];
  }
}

// The y-th part of y's columns from what `shrink` left in `splits` parts.
template <class T, class Y, int WM>
__device__ __forceinline__ void expand(const float* part, int splits, const Output to, const Factor* table,
                                       const Pairs pairs, const Tiles tiles, const float* weights, int target, int slices,
                                       int max_columns) {
  extern __shared__ __align__(128) unsigned char shared[];
  unsigned char* high = shared;
  unsigned char* low = high + 16 * WM * rank_row_bytes(max_columns);
  __shared__ Rows<WM> rows_of;
  wait_for_predecessor();
  int expert, slot, row0, rows;
  if (!tiles.find(blockIdx.x, pairs, expert, slot, row0, rows)) {
    return;
  }
  Ranks r = {};
  if (!r.load<T>(table, slot, target, slices, expert)) {
    return;
  }
  if (r.columns > max_columns) {
    __trap();  // a captured launch, and an adapter that came later with ranks it has no room for
  }
  rows_of.load(tiles, weights, to.row, row0, rows);
  const int groups = groups_of(to, slices);
  const int group = (long long)groups * blockIdx.y / gridDim.y;
  const int group_end = (long long)groups * (blockIdx.y + 1) / gridDim.y;
  __syncthreads();
  for (int i = 0; i < AHEAD; i++) {
    prefetch_y<Y, WM>(to, slices, rows_of.y, rows, group + i * WARPS, group_end);
  }
  const int row_bytes = rank_row_bytes(r.columns);
  const size_t plane = (size_t)pairs.P * max_columns;
  const float* from = part + (size_t)row0 * max_columns;
  split_rows<T>(high, low, rows_of.factor, rows, 16 * WM, r, row_bytes, [&](int row, int c) {
    float v = 0.0f;
    for (int i = 0; i < splits; i++) {
      v += from[i * plane + (size_t)row * max_columns + c];
    }
    return v;
  });
  __syncthreads();
  expand_rows<T, Y, WM>(to, r, slices, high, low, row_bytes, rows_of.factor, rows_of.y, rows, group, group_end);
}

}  // namespace lora

using namespace lora;

#define FROM Input{x, x_row, x_per_pair, in}
#define TO Output{y, y_row, y_slice, out, interleaved, add}
#define WHO Pairs{ids, map, mapping, P, K, num_global, slots}
#define WHERE Tiles{reinterpret_cast<const int4*>(tiles), order, count}

#define ONE_SHOT(NAME, T, YN, Y, ROWS, NT)                                                                             \
  extern "C" __global__ void __launch_bounds__(256, 2) lora_one_shot_##NAME##_##YN##_##ROWS##_##NT(                       \
      const void* x, void* y, const void* table, const int* ids, const int* map, const int* mapping, const int* tiles, \
      const int* order, const int* count, const float* weights, long long x_row, long long y_row, long long y_slice,   \
      int x_per_pair, int in, int out, int interleaved, int add, int P, int K, int num_global, int slots, int target,  \
      int slices, int max_columns) {                                                                                   \
    one_shot<T, Y, ROWS, NT>(FROM, TO, static_cast<const Factor*>(table), WHO, WHERE, weights, target, slices,    \
                                  max_columns);                                                                        \
  }

#define SHRINK(NAME, T, ROWS, NT)                                                                                      \
  extern "C" __global__ void __launch_bounds__(256, 2) lora_shrink_##NAME##_##ROWS##_##NT(                                \
      const void* x, float* part, const void* table, const int* ids, const int* map, const int* mapping,               \
      const int* tiles, const int* order, const int* count, long long x_row, int x_per_pair, int in, int P, int K,     \
      int num_global, int slots, int target, int slices, int max_columns) {                                            \
    shrink<T, ROWS / 16, NT>(FROM, part, static_cast<const Factor*>(table), WHO, WHERE, target, slices, max_columns);  \
  }

#define EXPAND(NAME, T, YN, Y, ROWS)                                                                                   \
  extern "C" __global__ void __launch_bounds__(256, 2) lora_expand_##NAME##_##YN##_##ROWS(                                \
      const float* part, void* y, const void* table, const int* ids, const int* map, const int* mapping,               \
      const int* tiles, const int* order, const int* count, const float* weights, long long y_row, long long y_slice,  \
      int splits, int out, int interleaved, int add, int P, int K, int num_global, int slots, int target, int slices,  \
      int max_columns) {                                                                                               \
    expand<T, Y, ROWS / 16>(part, splits, TO, static_cast<const Factor*>(table), WHO, WHERE, weights, target, slices,  \
                            max_columns);                                                                              \
  }

#define ONE_SHOTS(NAME, T, ROWS)         \
  ONE_SHOT(NAME, T, same, T, ROWS, 4)    \
  ONE_SHOT(NAME, T, same, T, ROWS, 8)    \
  ONE_SHOT(NAME, T, same, T, ROWS, 16)   \
  ONE_SHOT(NAME, T, f32, f32, ROWS, 4)   \
  ONE_SHOT(NAME, T, f32, f32, ROWS, 8)   \
  ONE_SHOT(NAME, T, f32, f32, ROWS, 16)

#define TWO_KERNELS(NAME, T, ROWS)       \
  SHRINK(NAME, T, ROWS, 4)               \
  SHRINK(NAME, T, ROWS, 16)              \
  EXPAND(NAME, T, same, T, ROWS)         \
  EXPAND(NAME, T, f32, f32, ROWS)

#define ALL_OF_TYPE(NAME, T) \
  ONE_SHOTS(NAME, T, 16)     \
  ONE_SHOTS(NAME, T, 32)     \
  ONE_SHOTS(NAME, T, 64)     \
  TWO_KERNELS(NAME, T, 16)   \
  TWO_KERNELS(NAME, T, 32)
