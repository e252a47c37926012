// The shrink of a tile with x and A passing through shared memory, a few stages ahead of the matrix instructions: A is read
// once for up to 64 rows, and how much memory is asked for at once does not depend on registers.
//
// A row of a stage is a stretch of the contraction in units of 16 bytes; unit u of row i stands at u ^ i % 8, so that
// neither copies nor load_blocks meet in a bank.
#pragma once
#include "tiles.cuh"

namespace lora {

// The work of 8 warps on tiles of ROWS rows and 8 * NT ranks: WM x WN x WK of them share rows, ranks and contraction.
// Java knows the sums and stages (LaunchPlan).
template <int ROWS, int NT>
struct Staged {
  static constexpr int WM = ROWS / 16;
  static constexpr int WN = NT >= 8 ? 2 : 1;
  static constexpr int NI = NT / WN;  // blocks of 8 ranks of a warp
  static constexpr int WK = WARPS / (WM * WN);
  static constexpr int DEPTH = WK > 2 ? WK * STEP : 2 * STEP;  // of the contraction in a stage
  static constexpr int ROW_BYTES = DEPTH * 2;
  static constexpr int UNITS = DEPTH / 8;  // of 16 bytes in a row
  static constexpr int BYTES = (ROWS + NT * 8) * ROW_BYTES;
  static constexpr int FIT = 98304 / BYTES;
  static constexpr int STAGES = FIT > 6 ? 6 : FIT;
  static constexpr int THREAD_ROWS = WARPS * 32 / UNITS;  // a thread copies the same unit of rows that far apart
  static constexpr int XS = (ROWS + THREAD_ROWS - 1) / THREAD_ROWS;
  static constexpr int AS = (NT * 8 + THREAD_ROWS - 1) / THREAD_ROWS;
};

__device__ __forceinline__ void copy_async(unsigned to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int LEFT>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

__device__ __forceinline__ void put_zeros(unsigned to) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
}

// Sums of a warp's 16 rows and 8 * NI ranks over [begin, end) of the stages of the contraction, for its share of each.
// x_of(row) is the row of x, null = none (its sums are arbitrary). All warps may use shared memory again when it returns.
template <class T, int ROWS, int NT, class X>
__device__ __forceinline__ void shrink_staged(float (&acc)[Staged<ROWS, NT>::NI][4], unsigned char* shared, const Ranks& r,
                                              int in, int begin, int end, X x_of) {
  using S = Staged<ROWS, NT>;
  const unsigned base = shared_address(shared);
  const int unit = threadIdx.x % S::UNITS;
  const int first = threadIdx.x / S::UNITS;
  const unsigned place = first * S::ROW_BYTES + (unit ^ first % 8) * 16;  // THREAD_ROWS is a multiple of 8

  const T* from[S::XS + S::AS];  // null = nothing to copy
#pragma unroll
  for (int i = 0; i < S::XS; i++) {
    const int row = first + i * S::THREAD_ROWS;
    const T* p = S::XS * S::THREAD_ROWS == ROWS || row < ROWS ? x_of(row) : nullptr;
    from[i] = p == nullptr ? nullptr : p + begin * S::DEPTH + unit * 8;
  }
  const int pad0 = round16(r.rank0);
  const int rank1 = r.at1 > 0 || r.rank0 == 0 ? r.rank1 : 0;  // a that both share is read once
#pragma unroll
  for (int i = 0; i < S::AS; i++) {
    const int c = first + i * S::THREAD_ROWS;
    const bool is0 = c < pad0;
    const bool there = is0 ? c < r.rank0 : c - pad0 < rank1;
    const T* a = reinterpret_cast<const T*>(is0 ? r.a0 : r.a1) + (long long)(is0 ? c : c - pad0) * in;
    from[S::XS + i] = there ? a + begin * S::DEPTH + unit * 8 : nullptr;
    if (!there && c < r.columns) {
      for (int stage = 0; stage < S::STAGES; stage++) {
        put_zeros(base + stage * S::BYTES + (ROWS + i * S::THREAD_ROWS) * S::ROW_BYTES + place);
      }
    }
  }
  auto fetch = [&](int stage, int slot) {
    if (stage < end) {
      const unsigned at = base + slot * S::BYTES + place;
      const bool inside = stage * S::DEPTH + unit * 8 < in;
#pragma unroll
      for (int i = 0; i < S::XS + S::AS; i++) {
        const unsigned to = at + (i < S::XS ? i * S::THREAD_ROWS : ROWS + (i - S::XS) * S::THREAD_ROWS) * S::ROW_BYTES;
        if (from[i] != nullptr) {
          if (inside) {
            copy_async(to, from[i]);
          } else {
            put_zeros(to);
          }
          from[i] += S::DEPTH;
        }
      }
    }
    copies_commit();  // an empty group too: groups are counted
  };

#pragma unroll
  for (int i = 0; i < S::NI; i++) {
    acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0.0f;
  }
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  const int n0 = warp / S::WM % S::WN * S::NI * 8;
  const int wk = warp / (S::WM * S::WN);
  // A step's blocks: x has rows 0 to 7, 8 to 15, both again 8 further; A has the steps' halves first, then the next ranks.
  const unsigned x_at = (warp % S::WM * 16 + lane % 16) * S::ROW_BYTES;
  const unsigned a_at = (ROWS + n0 + lane % 8 + lane / 16 * 8) * S::ROW_BYTES;
  const int x_unit = lane / 16 ^ lane % 8;
  const int a_unit = lane / 8 % 2 ^ lane % 8;
#pragma unroll
  for (int i = 0; i < S::STAGES - 1; i++) {
    fetch(begin + i, i);
  }
  auto contract = [&](auto full) {
    int slot = 0;
#pragma unroll 1
    for (int stage = begin; stage < end; stage++) {
      copies_wait<S::STAGES - 2>();
      __syncthreads();
      fetch(stage + S::STAGES - 1, slot == 0 ? S::STAGES - 1 : slot - 1);
      const unsigned now = base + slot * S::BYTES;
      slot = slot == S::STAGES - 1 ? 0 : slot + 1;
#pragma unroll
      for (int k = 0; k < S::DEPTH / 16 / S::WK; k++) {
        const int step = (k * S::WK + wk) * 2;
        const uint4 x = load_blocks(now + x_at + (x_unit ^ step) * 16);
#pragma unroll
        for (int i = 0; i < S::NI; i += 2) {
          if (decltype(full)::value || n0 + i * 8 < r.columns) {
            const uint4 a = load_blocks(now + a_at + i * 8 * S::ROW_BYTES + (a_unit ^ step) * 16);
            mma<T>(acc[i], x.x, x.y, x.z, x.w, a.x, a.y);
            mma<T>(acc[i + 1], x.x, x.y, x.z, x.w, a.z, a.w);
          }
        }
      }
    }
  };
  if (r.columns == NT * 8) {
    contract(Const<1>{});
  } else {
    contract(Const<0>{});
  }
  copies_wait<0>();
  __syncthreads();
}

}  // namespace lora
