// A grouped product for few rows an expert: mma, packed weights as its A operand, up to NT rows of x as its B operand.
//
// Eight warps share a block's rows of the weights and, warps_k of them, the contraction: each streams its own chunks through its own slots of
// shared memory, so no warp waits for another while it runs. x lies in shared memory, `phase` chunks of it at a time. The warps' sums meet
// there at the end. Group scales are applied in f32, to a group's sum: the tensor cores multiply the integers themselves.
#pragma once
#include "tile.cuh"

constexpr int NARROW_WARPS = 8;
// As many as fit 74 KiB of the eight warps' slots, so that x fits beside them on every card.
BOTH int narrow_stages(int q, int slot_bytes) {
  const int most = code_bits(q) == 4 ? 4 : 3, fit = 74 * 1024 / (NARROW_WARPS * slot_bytes);
  return fit < most ? fit : most;
}

template <int Q, class T, int NT, int SG, bool ZERO>
DEV void narrow(GEMM_PARAMETERS) {
  SHARED(memory);
  constexpr int NJ = NT / 8, slot_bytes = Stream<Q, SG, ZERO>::SLOT_BYTES, STAGES = narrow_stages(Q, slot_bytes), WORDS = code_bits(Q) / 4;
  constexpr bool LAZY = !ZERO && has_bias_form<Q, T>() && NT <= 16, SUMS = SG > 0 || LAZY;
  if (wait == 0) wait_for_predecessor();
  const int lane = THREAD % 32, warp = THREAD / 32, g = lane / 4, q = lane % 4;
  const int shift_k = warps_k >= 4 ? (warps_k == 8 ? 3 : 2) : warps_k - 1, wk = warp & (warps_k - 1), wr = warp >> shift_k;
  const int rows_a_warp = gated ? 16 : 32, rows_a_block = (NARROW_WARPS >> shift_k) * rows_a_warp;
  const Tile t = find_tile(first, ids, expert_map, mapping, gtile, nums, has_map, lora, naive, P, TOPK, quotient(N + rows_a_block - 1, rows_a_block), EG, E,
                           NS, 0, BLOCK);
  if (!t.some) return;
  const int tiles = (N + 15) / 16, chunks = (KD + CHUNK - 1) / CHUNK;
  const int n0 = (t.block * (NARROW_WARPS >> shift_k) + wr) * rows_a_warp;
  const int n[2] = {n0, gated ? n0 : n0 + 16};
  int64_t tile[2];
  tile[0] = (int64_t)(t.e * (gated ? 2 : 1)) * tiles + min(n[0] / 16, tiles - 1);
  tile[1] = (int64_t)(t.e * (gated ? 2 : 1) + (gated ? 1 : 0)) * tiles + min(n[1] / 16, tiles - 1);

  // Shared memory: x, then the slots.
  const int xrow = (phase * CHUNK + 8) * 2;
  const uint32_t xs = shared_address(memory);
  const uint32_t slots = xs + (((naive ? 1 : NT) * xrow + 127) & -128) + warp * STAGES * slot_bytes, slots_end = slots + STAGES * slot_bytes;
  Stream<Q, SG, ZERO> stream(w, ratio, zero, tile, chunks, group_shift, lane);
  uint32_t to = slots;
  int next = wk;
  auto prefetch = [&]() {
    if (next < chunks) stream.copy(to, next, lane);
    copies_end();
    next += warps_k;
    to += slot_bytes;
    if (to == slots_end) to = slots;
  };
#pragma unroll
  for (int i = 0; i < STAGES - 1; i++) prefetch();
  const float unit[2][2] = {{channel[tile[0] * 16 + g], channel[tile[0] * 16 + g + 8]}, {channel[tile[1] * 16 + g], channel[tile[1] * 16 + g + 8]}};
  if (wait == 1) wait_for_predecessor();

  float acc[2][NJ][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) acc[i][j][v] = 0.0f;

  const int count = t.row1 - t.row0;
  uint32_t from = slots, xlane[NJ];
#pragma unroll
  for (int j = 0; j < NJ; j++) xlane[j] = xs + min(8 * j + lane % 8, count - 1) * xrow + lane / 8 * 16;
  for (int p0 = 0; p0 < chunks; p0 += phase) {
    if (p0) block_sync();
    const int vectors = min(phase, chunks - p0) * (CHUNK / 8);
    for (int i = THREAD; i < count * vectors; i += NARROW_WARPS * 32) {
      const int r = quotient(i, vectors), c = i - r * vectors, k = p0 * CHUNK + c * 8;
      int row = t.row0 + r;
      if (gather) row = quotient(naive ? row : (int)load_new4(pairs + row), TOPK);
      uint4 v = {0, 0, 0, 0};
      if (k < KD) v = load_new16(x + (int64_t)row * KD + k);
      *(uint4*)(memory + r * xrow + c * 16) = v;
    }
    block_sync();
    const int last = min(chunks, p0 + phase);
    for (int c = p0 + wk; c < last; c += warps_k) {
      copies_wait<STAGES - 2>();
      prefetch();
      uint32_t codes[2][4 * WORDS], scale[2][SG > 0 ? SG : 1], zeros[2][SG > 0 ? SG : 1];
      stream.load(from, codes, scale, zeros, lane);
      from += slot_bytes;
      if (from == slots_end) from = slots;
      // LAZY: what the biased codes add too much is bias times the sum of x, which one more product with ones gives.
      float sum[2][SUMS ? NJ : 1][4], total[LAZY ? NJ : 1][4];
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {
        uint32_t xb[NJ][4];
#pragma unroll
        for (int j = 0; j < NJ; j++) load_matrices(xb[j], xlane[j] + (c - p0) * (CHUNK * 2) + pair * 64);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int step = pair * 2 + half, group = SG == 4 ? step : SG == 2 ? pair : 0;
          const bool begins = SG == 4 || (SG == 2 && half == 0) || step == 0, ends = SG == 4 || (SG == 2 && half == 1) || step == 3;
          if constexpr (LAZY) {
            const uint32_t ones[4] = {one<T>(), one<T>(), one<T>(), one<T>()};
#pragma unroll
            for (int j = 0; j < NJ; j++) {
              if (begins) total[j][0] = total[j][1] = total[j][2] = total[j][3] = 0.0f;
              multiply<T>(total[j], ones, xb[j][2 * half], xb[j][2 * half + 1]);
            }
          }
#pragma unroll
          for (int i = 0; i < 2; i++) {
            uint32_t a[4];
            if constexpr (LAZY) widen_biased<Q, T>(a, codes[i] + step * WORDS);
            else widen<Q, T>(a, codes[i] + step * WORDS, zero_word<Q, T>(zeros[i][group] & 0xFFFF), zero_word<Q, T>(zeros[i][group] >> 16));
            if constexpr (SUMS) {
              float r[2] = {1.0f, 1.0f};
              if constexpr (SG > 0) {
                r[0] = half_float((uint16_t)scale[i][group]);
                r[1] = half_float((uint16_t)(scale[i][group] >> 16));
              }
#pragma unroll
              for (int j = 0; j < NJ; j++) {
                if (begins) sum[i][j][0] = sum[i][j][1] = sum[i][j][2] = sum[i][j][3] = 0.0f;
                multiply<T>(sum[i][j], a, xb[j][2 * half], xb[j][2 * half + 1]);
                if (ends) {
#pragma unroll
                  for (int v = 0; v < 4; v++) {
                    float own = sum[i][j][v];
                    if constexpr (LAZY) own -= code_bias<Q, T>() * total[j][v];
                    acc[i][j][v] += r[v / 2] * own;
                  }
                }
              }
            } else {
#pragma unroll
              for (int j = 0; j < NJ; j++) multiply<T>(acc[i][j], a, xb[j][2 * half], xb[j][2 * half + 1]);
            }
          }
        }
      }
    }
  }
  copies_wait<0>();
  launch_dependents();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) acc[i][j][v] *= unit[i][v / 2];
  block_sync();  // x and the slots have been read: their place serves the sums
  if (lora) {
    if (wait == 2) wait_for_predecessor();
    if (naive) {
      const int64_t* slot = table + (int64_t)t.slot * SLOT_WIDTH;
      const int of = first ? 0 : 2;
      const int rank1 = t.slot >= 0 ? (int)slot[RANK + of] : 0, rank2 = gated && t.slot >= 0 ? (int)slot[RANK + 1] : 0;
      const int up = t.slot >= 0 && slot[SHARED_A] ? 0 : SU;
      // What the programs of the shrink left, summed and rounded.
      uint16_t* sums = (uint16_t*)memory;
      const int wide = ceil_div(max(rank1, rank2), PAGE) * PAGE;
#pragma unroll 1
      for (int i = THREAD; i < 2 * wide; i += NARROW_WARPS * 32) {
        const int r = i % wide;
        float v = 0.0f;
        if (i < wide ? r < rank1 : r < rank2)
#pragma unroll 4
          for (int k = 0; k < SPLIT; k++) v += bits_float(load_new4(part + (int64_t)(t.row0 * SPLIT + k) * RS + r + (i < wide ? 0 : up)));
        sums[i] = round_to<T>(v);
      }
      block_sync();
      if (t.slot >= 0) {
        const uint16_t* b1 = (const uint16_t*)0 + slot[B_ADDR + of] + slot[B_EXPERT + of] * t.e;
        const uint16_t* b2 = gated ? (const uint16_t*)0 + slot[B_ADDR + 1] + slot[B_EXPERT + 1] * t.e : b1;
        const int64_t d1 = slot[B_ROW + of], d2 = gated ? slot[B_ROW + 1] : d1;
#pragma unroll 1
        for (int k = wk * PAGE; k < wide; k += warps_k * PAGE) {
          uint32_t a0[4], a1[4];
          factor_operand(a0, b1 + k, d1, n[0], N, (rank1 - k) / 8, lane);
          factor_operand(a1, b2 + k, d2, n[1], N, ((gated ? rank2 : rank1) - k) / 8, lane);
          const uint16_t* v = sums + k + 2 * q;
          uint32_t s0 = g == 0 ? *(const uint32_t*)v : 0, s1 = g == 0 ? *(const uint32_t*)(v + 8) : 0;
          multiply<T>(acc[0][0], a0, s0, s1);
          if (gated) {
            s0 = g == 0 ? *(const uint32_t*)(v + wide) : 0;
            s1 = g == 0 ? *(const uint32_t*)(v + wide + 8) : 0;
          }
          multiply<T>(acc[1][0], a1, s0, s1);
        }
      }
      block_sync();
    } else {
      int seg[NJ];
#pragma unroll
      for (int j = 0; j < NJ; j++) {
        const int row = t.row0 + 8 * j + g;
        seg[j] = row >= t.lora0 && row < t.row1 ? seg_of[row] : -1;
      }
      // A page is always the same warp's: which tile has a row depends on the run, and so would the order of the row's sum.
      const int page0 = t.begin + ((wk - t.begin) & (warps_k - 1));
      expand_pages<T, 2, NJ, (NT <= 16 ? 4 : 2)>(gated, acc, s, pga, pgb, pgm, seg, t.row0, n, page0, t.end, warps_k, N, RS, SU, lane);
    }
  }
  float* sums = (float*)memory;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) sums[((warp * 2 + i) * NJ * 4 + j * 4 + v) * 32 + lane] = acc[i][j][v];
  block_sync();
#pragma unroll 1
  for (int index = wk; index < NJ * 4; index += warps_k) {
    const int row = t.row0 + index / 4 * 8 + 2 * q + index % 2;
    if (row >= t.row1) continue;
    float f = 1.0f;
    if (on_input) f = tw[naive ? row : (int)load_new4(pairs + row)];
    auto total = [&](int i) {
      float sum = 0.0f;
#pragma unroll 1
      for (int k = 0; k < warps_k; k++) sum += sums[(((wr * warps_k + k) * 2 + i) * NJ * 4 + index) * 32 + lane];
      return sum * f;
    };
    const int down = n0 + g + (index % 4 >= 2 ? 8 : 0);
    uint16_t* out = y + (int64_t)row * N;
    if (gated) {
      if (down < N) {
        float v = total(0), u = total(1);
        if (has_bias) {
          v += bias[(int64_t)t.e * 2 * N + down];
          u += bias[(int64_t)t.e * 2 * N + N + down];
        }
        out[down] = round_to<T>(activate_gated(v, u, act, alpha, beta, limit));
      }
    } else {
#pragma unroll 1
      for (int i = 0; i < 2; i++) {
        const int col = down + 16 * i;
        if (col < N) out[col] = round_to<T>(activate_single(total(i) + (has_bias ? bias[(int64_t)t.e * N + col] : 0.0f), act));
      }
    }
  }
}

#define NARROW(NAME, Q, T, NT, SG, ZERO, BLOCKS) \
  KERNEL(256, BLOCKS) NAME(GEMM_PARAMETERS) { narrow<Q, T, NT, SG, ZERO>(GEMM_ARGUMENTS); }
