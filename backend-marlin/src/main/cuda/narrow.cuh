// A grouped product for few rows an expert: mma, packed weights as its A operand, up to NT rows of x as its B operand.
//
// Eight warps share a block's rows of the weights and, warps_k of them, the contraction: each streams its own chunks through its own slots of
// shared memory, a unit of them at a time, so no warp waits for another while it runs. x lies in shared memory, `phase` chunks of it at a time. The
// warps' sums meet there at the end. Group scales are applied in f32, to a group's sum: the tensor cores multiply the integers themselves.
#pragma once
#include "tile.cuh"

constexpr int NARROW_WARPS = 8;
// Chunks that a warp brings and multiplies at a time: of 4 bits at height 8 as many as a group of 128 has. Then how many such units it has slots for.
BOTH int narrow_unit(int q, int nt, int sg) { return code_bits(q) == 4 && nt == 8 && sg < 4 ? 2 : 1; }
BOTH int narrow_stages(int q, int nt, int sg) { return code_bits(q) == 4 && narrow_unit(q, nt, sg) == 1 ? 3 : 2; }

template <int N>
struct Known {
  static constexpr int value = N;
};

template <int Q, class T, int NT, int SG, bool ZERO>
DEV void narrow(GEMM_PARAMETERS) {
  SHARED(memory);
  constexpr int NJ = NT / 8, WORDS = code_bits(Q) / 4, UNIT = narrow_unit(Q, NT, SG), STAGES = narrow_stages(Q, NT, SG), CODES = CHUNK * 16 * code_bits(Q) / 8, SCALES = UNIT * SG * 128;
  constexpr int SLOT = 2 * UNIT * CODES + 2 * SCALES * (ZERO ? 2 : 1), GROUPS = SG > 1 ? SG : 1;
  constexpr bool LAZY = !ZERO && has_bias_form<Q, T>() && NT <= 16, SUMS = SG > 0 || LAZY;
  constexpr int SUM_COLUMNS = SUMS ? NJ : 1;
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

  // Shared memory: x, what begins the sums of a group (LAZY), then the slots. A slot: codes of a unit's chunks of the one tile, of the other, then their
  // ratios and zero points likewise.
  const int count = t.row1 - t.row0, units = (chunks + UNIT - 1) / UNIT, groups = SG == 1 ? (chunks + (1 << group_shift) - 1) >> group_shift : chunks;
  const int xrow = (phase * CHUNK + 8) * 2, total_bytes = naive ? 16 : NJ * 64;
  const uint32_t xs = shared_address(memory), totals = xs + (((naive ? 1 : NT) * xrow + 127) & ~127);
  const uint32_t slots = totals + (LAZY ? (phase * GROUPS * total_bytes + 127) & ~127 : 0) + warp * STAGES * SLOT, slots_end = slots + STAGES * SLOT;
  const uint8_t* codes_at[2];
  const uint32_t *ratios_at[2], *zeros_at[2];
  const int code_step = warps_k * UNIT * CODES;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    codes_at[i] = w + tile[i] * chunks * CODES + wk * UNIT * CODES + lane * 16 - code_step;
    whole(codes_at[i]);
    if constexpr (SG > 0) {
      ratios_at[i] = ratio + (tile[i] * groups * 8 + g) * SG;
      whole(ratios_at[i]);
    }
    if constexpr (ZERO) {
      zeros_at[i] = zero + (tile[i] * groups * 8 + g) * SG;
      whole(zeros_at[i]);
    }
  }
  int next = wk;
  // A lane reads only what it copied itself, so nobody waits for anybody. every: a unit's chunks may be of several groups.
  auto refill = [&](uint32_t slot, auto every) {
    const uint32_t to = slot + lane * 16, scales_to = slot + 2 * UNIT * CODES + lane * 4 * SG;
    auto copy = [&](auto all) {
      const bool some[2] = {decltype(all)::value == 1 || next < units, UNIT == 2 && next * 2 + 1 < chunks};
#pragma unroll
      for (int i = 0; i < 2; i++) {
        codes_at[i] += code_step;
#pragma unroll
        for (int c = 0; c < UNIT; c++) {
#pragma unroll
          for (int h = 0; h < CODES / 512; h++) copy16_or_zero(to + (i * UNIT + c) * CODES + h * 512, codes_at[i] + c * CODES + h * 512, some[c]);
          if constexpr (SG > 0) {
            if (c == 0 || decltype(every)::value == 1) {
              const uint32_t at = (uint32_t)(SG == 1 ? (next * UNIT + c) >> group_shift : next * UNIT + c) * 8 * SG;
              copy_words_or_zero<4 * SG>(scales_to + (i * UNIT + c) * SG * 128, ratios_at[i] + at, some[c]);
              if constexpr (ZERO) copy_words_or_zero<4 * SG>(scales_to + ((2 + i) * UNIT + c) * SG * 128, zeros_at[i] + at, some[c]);
            }
          }
        }
      }
    };
    if constexpr (UNIT == 1) {
      if (next < units) copy(Known<1>{});
    } else {
      copy(Known<0>{});  // a chunk that is not there is zeros: quicker than branches
    }
    copies_end();
    next += warps_k;
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++) refill(slots + i * SLOT, Known<1>{});
  const float unit[2][2] = {{channel[tile[0] * 16 + g], channel[tile[0] * 16 + g + 8]}, {channel[tile[1] * 16 + g], channel[tile[1] * 16 + g + 8]}};
  if (wait == 1) wait_for_predecessor();

  float acc[2][NJ][4];
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) acc[i][j][v] = 0.0f;

  const bool one_group = UNIT == 2 && SG == 1 && group_shift > 0;  // a unit's chunks are of the same
  uint32_t slot = slots, xlane[NJ];
#pragma unroll
  for (int j = 0; j < NJ; j++) xlane[j] = xs + min(8 * j + lane % 8, count - 1) * xrow + lane / 8 * 16;
  for (int p0 = 0; p0 < chunks; p0 += phase) {
    if (p0) block_sync();
    const int staged = min(phase, units * UNIT - p0), vectors = staged * (CHUNK / 8);
    for (int i = THREAD; i < count * vectors; i += NARROW_WARPS * 32) {
      const int r = quotient(i, vectors), c = i - r * vectors, k = p0 * CHUNK + c * 8;
      int row = t.row0 + r;
      if (gather) row = quotient(naive ? row : (int)load_new4(pairs + row), TOPK);
      uint4 v = {0, 0, 0, 0};
      if (k < KD) v = load_new16(x + (int64_t)row * KD + k);
      *(uint4*)(memory + r * xrow + c * 16) = v;
    }
    block_sync();
    if constexpr (LAZY) {
      // What the biased codes add too much is bias times the sum of x, which a product with ones gives. It is taken off where a group's sum begins.
      const uint32_t ones[4] = {one<T>(), one<T>(), one<T>(), one<T>()};
#pragma unroll 1
      for (int c = warp * UNIT; c < staged; c += NARROW_WARPS * UNIT)
#pragma unroll
        for (int j = 0; j < NJ; j++) {
          constexpr int PARTS = SG == 4 ? 4 : 2 * UNIT;
          float total[PARTS][4];
#pragma unroll
          for (int part = 0; part < PARTS; part++)
#pragma unroll
            for (int v = 0; v < 4; v++) total[part][v] = 0.0f;
#pragma unroll
          for (int pair = 0; pair < 2 * UNIT; pair++) {
            uint32_t xb[4];
            load_matrices(xb, xlane[j] + c * (CHUNK * 2) + pair * 64);
            multiply<T>(total[SG == 4 ? 2 * pair : pair], ones, xb[0], xb[1]);
            multiply<T>(total[SG == 4 ? 2 * pair + 1 : pair], ones, xb[2], xb[3]);
          }
          auto write = [&](int at, float first, float second) {
            const float b = -code_bias<Q, T>();
            if (lane < (!naive ? 4 : j == 0 ? 1 : 0)) *(float4*)(memory + (totals - xs) + at * total_bytes + j * 64 + q * 16) = {b * first, b * second, b * first, b * second};
          };
          if constexpr (SG > 1) {
#pragma unroll
            for (int part = 0; part < PARTS; part++) write(c * SG + part, total[part][0], total[part][1]);
          } else if constexpr (UNIT == 1) {
            write(c, total[0][0] + total[1][0], total[0][1] + total[1][1]);
          } else {
            const float first[2] = {total[0][0] + total[1][0], total[0][1] + total[1][1]}, second[2] = {total[2][0] + total[3][0], total[2][1] + total[3][1]};
            write(c, first[0] + (one_group ? second[0] : 0.0f), first[1] + (one_group ? second[1] : 0.0f));
            if (!one_group) write(c + 1, second[0], second[1]);
          }
        }
      block_sync();
    }
    const int last = (p0 + staged) / UNIT;
    auto multiply_units = [&](auto how) {
      constexpr bool both = decltype(how)::value == 1;  // one_group
      uint32_t x_at = wk * UNIT * (CHUNK * 2), total_at = totals + (naive ? 0 : q * 16) + wk * UNIT * GROUPS * total_bytes;
#pragma unroll 1
      for (int u = p0 / UNIT + wk; u < last; u += warps_k) {
        copies_wait<STAGES - 1>();
        uint32_t codes[2][UNIT][4 * WORDS], scale[2][UNIT][GROUPS], zeros[2][UNIT][GROUPS];
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int c = 0; c < UNIT; c++) {
#pragma unroll
            for (int h = 0; h < WORDS; h++) *(uint4*)(codes[i][c] + 4 * h) = shared16(slot + lane * 16 + (i * UNIT + c) * CODES + h * 512);
#pragma unroll
            for (int b = 0; b < GROUPS; b++) {
              const uint32_t at = slot + 2 * UNIT * CODES + lane * 4 * SG + (i * UNIT + (both ? 0 : c)) * SG * 128 + b * 4;
              if constexpr (SG > 0) scale[i][c][b] = both && c > 0 ? scale[i][0][b] : shared4(at);
              zeros[i][c][b] = (Q == U8 ? 128 : 8) * 0x10001;
              if constexpr (ZERO) zeros[i][c][b] = both && c > 0 ? zeros[i][0][b] : shared4(at + 2 * SCALES);
            }
          }
        refill(slot, Known<both ? 0 : 1>{});
        slot += SLOT;
        if (slot == slots_end) slot = slots;
        float sum[2][SUM_COLUMNS][4];
        uint32_t xb[NJ][4];
#pragma unroll
        for (int step = 0; step < 4 * UNIT; step++) {
          const int chunk = step / 4, in = step % 4, group = SG > 1 ? in / (4 / GROUPS) : 0;
          const bool begins = SG == 4 || (SG == 2 && in % 2 == 0) || (in == 0 && (chunk == 0 || !both));
          const bool ends = SG == 4 || (SG == 2 && in % 2 == 1) || (in == 3 && (chunk == UNIT - 1 || !both));
          if (step % 2 == 0) {
#pragma unroll
            for (int j = 0; j < NJ; j++) load_matrices(xb[j], xlane[j] + x_at + step * 32);
          }
          if constexpr (SUMS) {
            if (begins) {
#pragma unroll
              for (int j = 0; j < NJ; j++) {
                float4 from = {0.0f, 0.0f, 0.0f, 0.0f};
                if constexpr (LAZY) from = shared_floats(total_at + (chunk * GROUPS + group) * total_bytes + j * 64);
                sum[0][j][0] = sum[1][j][0] = from.x;
                sum[0][j][1] = sum[1][j][1] = from.y;
                sum[0][j][2] = sum[1][j][2] = from.z;
                sum[0][j][3] = sum[1][j][3] = from.w;
              }
            }
          }
#pragma unroll
          for (int i = 0; i < 2; i++) {
            uint32_t a[4];
            if constexpr (LAZY) {
              widen_biased<Q, T>(a, codes[i][chunk] + in * WORDS);
            } else {
              const uint32_t z = zeros[i][chunk][group];
              widen<Q, T>(a, codes[i][chunk] + in * WORDS, zero_word<Q, T>(z & 0xFFFF), zero_word<Q, T>(z >> 16));
            }
#pragma unroll
            for (int j = 0; j < NJ; j++) {
              if constexpr (SUMS) {
                multiply<T>(sum[i][j], a, xb[j][step % 2 * 2], xb[j][step % 2 * 2 + 1]);
                if (ends) {
#pragma unroll
                  for (int v = 0; v < 4; v++) acc[i][j][v] += (SG > 0 ? half_float((uint16_t)(scale[i][chunk][group] >> v / 2 * 16)) : 1.0f) * sum[i][j][v];
                }
              } else {
                multiply<T>(acc[i][j], a, xb[j][step % 2 * 2], xb[j][step % 2 * 2 + 1]);
              }
            }
          }
        }
        x_at += warps_k * UNIT * (CHUNK * 2);
        total_at += warps_k * UNIT * GROUPS * total_bytes;
      }
    };
    if constexpr (UNIT == 2 && SG == 1) {
      if (one_group) multiply_units(Known<1>{});
      else multiply_units(Known<0>{});
    } else {
      multiply_units(Known<0>{});
    }
  }
  copies_wait<0>();
  warp_sync();  // the warp's slots are free
  launch_dependents();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) acc[i][j][v] *= unit[i][v / 2];
  if (lora) {
    if (wait == 2) wait_for_predecessor();
    if (naive) {
      block_sync();  // x has been read
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
  // The sums of a warp to its own slots where they fit: then only warps that share a contraction meet.
  constexpr bool OWN = NJ * 1024 <= STAGES * SLOT;
  constexpr uint32_t EACH = OWN ? STAGES * SLOT : NJ * 1024;  // of a warp
  if constexpr (!OWN) block_sync();  // x and the slots have been read
  uint8_t* sums = OWN ? memory + (slots - xs) - warp * EACH : memory;
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < NJ; j++)
#pragma unroll
      for (int v = 0; v < 4; v++) ((float*)(sums + warp * EACH))[((i * NJ + j) * 4 + v) * 32 + lane] = acc[i][j][v];
  if (warps_k > 1) block_sync();
#pragma unroll 1
  for (int index = wk; index < NJ * 4; index += warps_k) {
    const int row = t.row0 + index / 4 * 8 + 2 * q + index % 2;
    if (row >= t.row1) continue;
    float f = 1.0f;
    if (on_input) f = tw[naive ? row : (int)load_new4(pairs + row)];
    auto total = [&](int i) {
      float sum = 0.0f;
#pragma unroll 1
      for (int k = 0; k < warps_k; k++) sum += ((const float*)(sums + (wr * warps_k + k) * EACH))[(i * NJ * 4 + index) * 32 + lane];
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
