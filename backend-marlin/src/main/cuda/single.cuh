// Products of few pairs that are not sorted, a row of x each: w13 of a pair, and w2 of a token with the weighted sum over its experts in the same
// launch, so that nothing is left for another one.
//
// A block has 16 outputs (of gate and of up, 16 of each). Its warps share the contraction (w2: and the token's experts), and each streams its own
// items through its own slots of shared memory: gate's and up's tile of a chunk, or else two chunks of a tile. w2 asks for the first of its weights before
// it waits for x: its blocks come while those of w13 still run.
#pragma once
#include "tile.cuh"

// Warps of a block: w2 has one or two blocks a multiprocessor, and a warp alone is slow. Items under way in each.
BOTH int single_warps(bool sum) { return sum ? 16 : 8; }
BOTH int single_stages(int q, bool sum) { return code_bits(q) == 4 ? (sum ? 3 : 4) : (sum ? 2 : 3); }

// As GEMM_PARAMETERS. warps_k: of w13; those of w2 follow from its experts. gather: x of tokens, else of pairs. y: w13 of pairs; w2 of tokens, f32: its
// type. on_input: w13 applies the router's weights, else w2.
#define SINGLE_PARAMETERS                                                                                                                      \
  const uint16_t *x, const uint8_t *w, const uint32_t *ratio, const uint32_t *zero, const float *channel, const float *bias, const float *tw,   \
      void *y, const int64_t *table, const int *ids, const int *expert_map, const int *mapping, const float *part, int has_map, int has_bias,  \
      int on_input, int gather, int lora, int f32, int act, float alpha, float beta, float limit, int TOPK, int N, int KD, int EG, int E, int NS,     \
      int RS, int SU, int SPLIT, int wait, int group_shift, int warps_k
#define SINGLE_ARGUMENTS                                                                                                                       \
  x, w, ratio, zero, channel, bias, tw, y, table, ids, expert_map, mapping, part, has_map, has_bias, on_input, gather, lora, f32, act, alpha, beta,   \
      limit, TOPK, N, KD, EG, E, NS, RS, SU, SPLIT, wait, group_shift, warps_k

template <int N>
struct Part {
  static constexpr int value = N;
};

// Minus what a symmetric code is too large by, see widen_biased.
template <int Q, class T>
DEV uint32_t minus_code_bias() {
  constexpr uint32_t bits = Zero<U4, T>::BASE == 0xE400E400 ? (Q == U4 ? 0xE408 : 0xE480) : 0xC308;
  return bits * 0x10001u;
}

// SUM: w2, up to sixteen experts a token; else w13 with a gate.
template <int Q, class T, int SG, bool ZERO, bool SUM>
DEV void single_rows(SINGLE_PARAMETERS) {
  SHARED(memory);
  constexpr int WORDS = code_bits(Q) / 4, CODES = CHUNK * 16 * code_bits(Q) / 8, SCALES = SG * 128, STAGES = single_stages(Q, SUM), GROUPS = SG > 1 ? SG : 1;
  constexpr int WARPS = single_warps(SUM), EACH = SUM ? 2 : 1, X_BYTES = EACH * CHUNK * 2, SLOT = 2 * (CODES + SCALES * (ZERO ? 2 : 1)) + X_BYTES;  // EACH: chunks of an item
  constexpr int VECTORS = EACH * CHUNK / 8, TILES = SUM ? 1 : 2, SUMS_BYTES = WARPS * 2 * 32 * 4;
  constexpr bool LAZY = !ZERO && has_bias_form<Q, T>();
  if (!SUM) {
    if (wait == 0) wait_for_predecessor();
    launch_dependents();  // all that the next ones read before they wait is older than this launch and the shrink before it
  }
  const int lane = THREAD % 32, warp = THREAD / 32, g = lane / 4, q = lane % 4;
  const int log_shares = !SUM ? (warps_k >= 4 ? (warps_k == 8 ? 3 : 2) : warps_k - 1) : TOPK > 8 ? 0 : TOPK > 4 ? 1 : TOPK > 2 ? 2 : 5 - TOPK, shares = 1 << log_shares;  // warps of an expert
  const int blocks = (N + 15) / 16, outputs = SUM ? 1 : WARPS >> log_shares;  // a block's, in sixteens
  const int across = SUM ? blocks : (blocks + outputs - 1) >> (3 - log_shares), at = quotient(BLOCK, across), block0 = (BLOCK - at * across) * outputs;
  const int block = SUM ? block0 : min(block0 + (warp >> log_shares), blocks - 1), n = block * 16;
  const int k = SUM ? warp >> log_shares : 0, share = warp & (shares - 1), pair = SUM ? at * TOPK + k : at;
  int e = -1, adapter = -1;
  if (!SUM || k < TOPK) {
    e = ids[pair];
    if (lora) adapter = mapping[SUM ? at : quotient(pair, TOPK)];
    if (has_map) e = e >= 0 && e < EG ? expert_map[e] : -1;
    else if (e >= EG) e = -1;
  }
  const bool some = e >= 0 && e < E;
  const int chunks = some ? (KD + CHUNK - 1) / CHUNK : 0;
  float* sums = (float*)memory + warp * 64;  // of a warp: what it leaves for the end, 16 outputs of gate, 16 of up; channel scales likewise
  const uint32_t slots = shared_address(memory) + SUMS_BYTES + warp * STAGES * SLOT, slots_end = slots + STAGES * SLOT;
  uint8_t* own = memory + SUMS_BYTES + warp * STAGES * SLOT;
  float ends[2][4];
#pragma unroll
  for (int v = 0; v < 4; v++) ends[0][v] = ends[1][v] = 0.0f;
  const int row = some ? e : 0, groups = SG == 1 ? (chunks + (1 << group_shift) - 1) >> group_shift : chunks;
  // Of the first of an item's two tiles; the other one is so much further on.
  const int64_t tile = (int64_t)(row * TILES) * blocks + block;
  int next = share * EACH;  // chunk
  const uint8_t* codes_at = w + (tile * chunks + next) * CODES + lane * 16;
  const uint32_t codes_on = SUM ? CODES : (uint32_t)blocks * chunks * CODES;
  const uint32_t* ratios_at = ratio + (tile * groups * 8 + g) * SG;
  const uint32_t* zeros_at = zero + (tile * groups * 8 + g) * SG;
  const uint32_t ratios_on = SUM ? 0 : (uint32_t)blocks * groups * 8 * SG;
  const uint16_t* from_x = x + (int64_t)(gather ? quotient(pair, TOPK) : pair) * KD;
  // with: 0 the weights of an item, 1 its x as well.
  auto refill = [&](uint32_t slot, auto with) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const bool there = next + (SUM ? i : 0) < chunks;
#pragma unroll
      for (int h = 0; h < CODES / 512; h++) {
        if (there) copy16(slot + i * CODES + lane * 16 + h * 512, codes_at + i * codes_on + h * 512);
      }
      if constexpr (SG > 0) {
        const int c = next + (SUM ? i : 0);
        const uint32_t group = (uint32_t)(SG == 1 ? c >> group_shift : c) * 8 * SG + i * ratios_on, to = slot + 2 * CODES + i * SCALES + lane * 4 * SG;
        if (there) {
          copy_words<4 * SG>(to, ratios_at + group);
          if constexpr (ZERO) copy_words<4 * SG>(to + 2 * SCALES, zeros_at + group);
        }
      }
    }
    if constexpr (decltype(with)::value == 1) {
      const int column = next * CHUNK + lane * 8;
      if (lane < VECTORS) copy16_or_zero(slot + SLOT - X_BYTES + lane * 16, from_x + (column < KD ? column : 0), column < KD);
    }
    copies_end();
    next += shares * EACH;
    codes_at += shares * EACH * CODES;
  };
#pragma unroll
  for (int i = 0; i < STAGES; i++) refill(slots + i * SLOT, Part<0>{});
  if (some && lane < 16 * TILES) sums[32 + lane] = channel[(tile + (SUM ? 0 : lane / 16 * blocks)) * 16 + lane % 16];
  if (SUM) {
    wait_for_predecessor();
    launch_dependents();
  }
  // x of the first items, without the queue of copies: there it would be the youngest, and hold up the oldest weights.
  if (some) {
    constexpr int LOADS = (STAGES * VECTORS + 31) / 32;
    uint4 xs[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int v = lane + 32 * i, column = (share + v / VECTORS * shares) * EACH * CHUNK + v % VECTORS * 8;
      xs[i] = uint4{0, 0, 0, 0};
      if (column < KD) xs[i] = load_new16(from_x + column);
    }
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
      const int v = lane + 32 * i;
      if (v < STAGES * VECTORS) *(uint4*)(own + v / VECTORS * SLOT + SLOT - X_BYTES + v % VECTORS * 16) = xs[i];
    }
  }
  float acc[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
  uint32_t slot = slots;
#pragma unroll 1
  for (int c = share * EACH; c < chunks; c += shares * EACH) {
    copies_wait<STAGES - 1>();
    warp_sync();
    // All eight rows of the operand are the one row there is: every column of the result is the same.
    const uint32_t x_slot = slot + SLOT - X_BYTES + lane / 8 * 16;
    uint32_t xb[2][4];
    // What biased codes add too much, taken off by products with the bias.
    float less[GROUPS][4];
    auto load_x = [&](uint32_t from) {
      load_matrices(xb[0], from);
      load_matrices(xb[1], from + 64);
      if constexpr (LAZY) {
#pragma unroll
        for (int b = 0; b < GROUPS; b++)
#pragma unroll
          for (int v = 0; v < 4; v++) less[b][v] = 0.0f;
        const uint32_t constants[4] = {minus_code_bias<Q, T>(), minus_code_bias<Q, T>(), minus_code_bias<Q, T>(), minus_code_bias<Q, T>()};
#pragma unroll
        for (int step = 0; step < 4; step++) multiply<T>(less[SG > 1 ? step / (4 / GROUPS) : 0], constants, xb[step / 2][step % 2 * 2], xb[step / 2][step % 2 * 2 + 1]);
      }
    };
    load_x(x_slot);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (SUM && i == 1) {
        if (c + 1 >= chunks) break;
        load_x(x_slot + CHUNK * 2);
      }
      uint32_t codes[4 * WORDS], scale[GROUPS], zeros[GROUPS];
#pragma unroll
      for (int h = 0; h < WORDS; h++) *(uint4*)(codes + 4 * h) = shared16(slot + i * CODES + lane * 16 + h * 512);
#pragma unroll
      for (int b = 0; b < GROUPS; b++) {
        const uint32_t from = slot + 2 * CODES + i * SCALES + lane * 4 * SG + b * 4;
        if constexpr (SG > 0) scale[b] = shared4(from);
        zeros[b] = (Q == U8 ? 128 : 8) * 0x10001;
        if constexpr (ZERO) zeros[b] = shared4(from + 2 * SCALES);
      }
      float products[GROUPS][4];
#pragma unroll
      for (int b = 0; b < GROUPS; b++)
#pragma unroll
        for (int v = 0; v < 4; v++) products[b][v] = 0.0f;
#pragma unroll
      for (int step = 0; step < 4; step++) {
        const int b = SG > 1 ? step / (4 / GROUPS) : 0;
        uint32_t a[4];
        if constexpr (LAZY) widen_biased<Q, T>(a, codes + step * WORDS);
        else widen<Q, T>(a, codes + step * WORDS, zero_word<Q, T>(zeros[b] & 0xFFFF), zero_word<Q, T>(zeros[b] >> 16));
        multiply<T>(products[SG > 1 ? step / (4 / GROUPS) : 0], a, xb[step / 2][step % 2 * 2], xb[step / 2][step % 2 * 2 + 1]);
      }
#pragma unroll
      for (int b = 0; b < GROUPS; b++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float v = LAZY ? products[b][2 * h] + less[b][0] : products[b][2 * h];
          acc[i][h] += (SG > 0 ? half_float((uint16_t)(scale[b] >> 16 * h)) : 1.0f) * v;
        }
    }
    warp_sync();
    refill(slot, Part<1>{});
    slot += SLOT;
    if (slot == slots_end) slot = slots;
  }
  copies_wait<0>();
  warp_sync();
  if (some) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float unit = sums[32 + g + 8 * h];
      if (SUM) {
        ends[0][2 * h] = unit * (acc[0][h] + acc[1][h]);
      } else {
        ends[0][2 * h] = unit * acc[0][h];
        ends[1][2 * h] = sums[48 + g + 8 * h] * acc[1][h];
      }
    }
  }
  if (!SUM && wait == 2) wait_for_predecessor();
  if (some && adapter >= 0 && adapter < NS) {
    const int of = SUM ? 2 : 0;
    const int64_t* about = table + (int64_t)adapter * SLOT_WIDTH;
    const int rank1 = (int)about[RANK + of], rank2 = SUM ? 0 : (int)about[RANK + 1], rank = max(rank1, rank2);
    const uint16_t* b1 = (const uint16_t*)0 + about[B_ADDR + of] + about[B_EXPERT + of] * e;
    const uint16_t* b2 = (const uint16_t*)0 + about[B_ADDR + 1] + about[B_EXPERT + 1] * e;
    const int64_t d1 = about[B_ROW + of], d2 = about[B_ROW + 1];
    const int up = about[SHARED_A] ? 0 : SU;
    uint16_t* shrunk = (uint16_t*)own;  // 16 ranks of the first, then of the second projection
#pragma unroll 1
    for (int r = share * PAGE; r < rank; r += shares * PAGE) {
      // What the programs of the shrink left, summed and rounded.
      const int second = lane / PAGE, column = r + lane % PAGE;
      float v = 0.0f;
      if (column < (second ? rank2 : rank1))
#pragma unroll 4
        for (int i = 0; i < SPLIT; i++) v += bits_float(load_new4(part + (int64_t)(pair * SPLIT + i) * RS + column + (second ? up : 0)));
      uint32_t a0[4], a1[4];
      factor_operand(a0, b1 + r, d1, n, N, (rank1 - r) / 8, lane);
      if (!SUM) factor_operand(a1, b2 + r, d2, n, N, (rank2 - r) / 8, lane);
      warp_sync();
      shrunk[lane] = round_to<T>(v);
      warp_sync();
      const uint16_t* from = shrunk + 2 * q;
      multiply<T>(ends[0], a0, *(const uint32_t*)from, *(const uint32_t*)(from + 8));
      if (!SUM) multiply<T>(ends[1], a1, *(const uint32_t*)(from + PAGE), *(const uint32_t*)(from + PAGE + 8));
    }
  }
  const float weight = SUM && some && !on_input ? tw[pair] : 1.0f;
  if (q == 0) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (SUM) {
        sums[g + 8 * h] = weight * (ends[0][2 * h] + (some && has_bias && share == 0 ? bias[(int64_t)e * N + min(n + g + 8 * h, N - 1)] : 0.0f));
      } else {
        sums[g + 8 * h] = ends[0][2 * h];
        sums[16 + g + 8 * h] = ends[1][2 * h];
      }
    }
  }
  block_sync();
  const int column = block0 * 16 + THREAD;
  if (THREAD < 16 * outputs && column < N && (SUM || some)) {
    float v[2] = {0.0f, 0.0f};
    const float* from = (const float*)memory + (SUM ? THREAD : ((THREAD / 16) << log_shares) * 64 + THREAD % 16);
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
      if (!SUM && i == shares) break;
      v[0] += from[i * 64];
      if (!SUM) v[1] += from[i * 64 + 16];
    }
    const int64_t to = (int64_t)at * N + column;
    if (SUM) {
      if (f32) ((float*)y)[to] = v[0];
      else ((uint16_t*)y)[to] = round_to<T>(v[0]);
    } else {
      const float f = on_input ? tw[at] : 1.0f;
      const int64_t own_bias = (int64_t)e * 2 * N + column;
      v[0] = v[0] * f + (has_bias ? bias[own_bias] : 0.0f);
      v[1] = v[1] * f + (has_bias ? bias[own_bias + N] : 0.0f);
      ((uint16_t*)y)[to] = round_to<T>(activate_gated(v[0], v[1], act, alpha, beta, limit));
    }
  }
}

#define SINGLE(NAME, Q, T, SG, ZERO, SUM) \
  KERNEL((SUM ? 512 : 256), (SUM ? 2 : 4)) NAME(SINGLE_PARAMETERS) { single_rows<Q, T, SG, ZERO, SUM>(SINGLE_ARGUMENTS); }
