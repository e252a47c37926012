// What every kernel here shares: element types, the table of factors, how a tile of rows is found.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace lora {

using bf16 = __nv_bfloat16;
using f16 = __half;
using f32 = float;

constexpr int F32 = 0;  // Codes of element types, as io.moe4j.lora.cuda.FactorTable writes them.
constexpr int BF16 = 1;
constexpr int F16 = 2;
constexpr int MIXED = 16;
constexpr int TARGETS = 9;  // columns of the table, see FactorTable.COLUMNS
constexpr unsigned ALL = 0xffffffffu;

// One adapter's pair for one target of a layer: b[e] . a[e]. Rows of a are dense. A slot that is empty or lacks the
// target has rank 0. For BF16 and F16 factors with an even number of eights to read, the rank is padded with zeros to a
// multiple of 8 and every row begins at a multiple of 16 bytes.
struct Factor {
  const void* a;        // [E, rank, in]
  const void* b;        // [E, out, b_row], the first rank of each row used
  long long a_expert;   // elements from one expert's to the next; 0 = one for all experts
  long long b_expert;
  int b_row;
  int rank;
  int type;             // of both; MIXED + type of a + 4 * type of b where they differ
  int experts;          // experts covered, 0 = any
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(f16 v) { return __half2float(v); }

template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }
template <> __device__ __forceinline__ f16 from_float<f16>(float v) { return __float2half_rn(v); }

template <class T> struct TypeCode;
template <> struct TypeCode<float> { static constexpr int value = F32; };
template <> struct TypeCode<bf16> { static constexpr int value = BF16; };
template <> struct TypeCode<f16> { static constexpr int value = F16; };

// With programmatic dependent launch a kernel starts before its predecessor has finished: nothing may be read or written
// before this returns. The successor may be scheduled from here on; it waits in the same way.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Who goes where. ids null: one map for all rows (a dense linear), every row is its own pair.
struct Pairs {
  const int* ids;      // [P] global expert ids
  const int* map;      // [num_global] or null
  const int* mapping;  // [P / K] slot of each token
  int P, K, num_global, slots;

  // Local expert of a pair, -1 for none.
  __device__ __forceinline__ int expert(int p) const {
    if (ids == nullptr) {
      return 0;
    }
    int id = ids[p];
    if (map != nullptr) {
      id = (unsigned)id < (unsigned)num_global ? map[id] : -1;
    }
    return id;
  }

  __device__ __forceinline__ int slot(int p) const {
    int s = mapping[p / K];
    return (unsigned)s < (unsigned)slots ? s : -1;
  }
};

// Rows that share an expert and an adapter. Of sorted pairs, or (tiles null) the pair with the tile's number.
struct Tiles {
  const int4* tiles;  // expert, first row, end, slot
  const int* order;   // row -> pair
  const int* count;   // number of tiles

  __device__ __forceinline__ bool find(int tile, const Pairs& pairs, int& expert, int& slot, int& row0, int& rows) const {
    if (tiles == nullptr) {
      slot = pairs.slot(tile);
      expert = pairs.expert(tile);
      row0 = tile;
      rows = 1;
      return slot >= 0 && expert >= 0;
    }
    if (tile >= *count) {
      return false;
    }
    int4 t = tiles[tile];
    expert = t.x;
    row0 = t.y;
    rows = t.z - t.y;
    slot = t.w;
    return true;
  }

  __device__ __forceinline__ int pair(int row) const { return tiles == nullptr ? row : order[row]; }
};

// A factor whose expert exists; otherwise the rank is 0.
__device__ __forceinline__ Factor load_factor(const Factor* table, int slot, int target, int expert) {
  Factor f = table[slot * TARGETS + target];
  if (f.experts != 0 && expert >= f.experts) {
    f.rank = 0;
  }
  return f;
}

}  // namespace lora
