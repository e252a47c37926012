// What the grouped products share: which tile a block computes, the expand of LoRA, the end of a row.
#pragma once
#include "widen.cuh"

// The columns of the slot table, a row of int64 a slot; io.moe4j.cuda.ops.SlotTable writes it.
constexpr int SLOT_WIDTH = 24, SHARED_A = 3, B_ADDR = 7, B_EXPERT = 13, B_ROW = 16, RANK = 19;
constexpr int TILE_WORDS = 8;
constexpr int CHUNK = 64;  // columns of the contraction a step
constexpr int PAGE = 16;   // ranks

// Weights: tiles of 16 rows x 64 columns, [experts][matrices][row tiles][chunks], each lane's codes together, see repack.cu.
// ratio, zero: [experts][matrices][row tiles][groups][8][SG] words of the values of rows g (low half) and g + 8; SG groups a chunk, or
// 2^group_shift chunks a group (SG = 1), or none (SG = 0). channel: [experts][matrices][row tiles * 16] f32.
// fine: ratios may have more bits than bf16. gated: two matrices an expert, gate and up. wait: 0 at once, 1 before x, 2 before s.
#define GEMM_PARAMETERS                                                                                                                    \
  const uint16_t *x, const uint8_t *w, const uint32_t *ratio, const uint32_t *zero, const float *channel, const float *bias, const float *tw, \
      uint16_t *y, const int64_t *table, const int *ids, const int *expert_map, const int *mapping, const int *pairs, const int *gtile,       \
      const int *nums, const int *seg_of, const int64_t *pga, const int64_t *pgb, const int64_t *pgm, const uint16_t *s, const float *part,   \
      int has_map, int has_bias, int on_input, int first, int gated, int gather, int lora, int naive, int act, float alpha, float beta, float limit, int P,         \
      int TOPK, int N, int KD, int EG, int E, int NS, int RS, int SU, int SPLIT, int GM, int wait, int fine,                   \
      int group_shift, int warps_k, int phase
#define GEMM_ARGUMENTS                                                                                                                     \
  x, w, ratio, zero, channel, bias, tw, y, table, ids, expert_map, mapping, pairs, gtile, nums, seg_of, pga, pgb, pgm, s, part, has_map,      \
      has_bias, on_input, first, gated, gather, lora, naive, act, alpha, beta, limit, P, TOPK, N, KD, EG, E, NS, RS, SU, SPLIT, GM, wait, fine,   \
      group_shift, warps_k, phase

DEV int ceil_div(int a, int b) { return (a + b - 1) / b; }

struct Tile {
  bool some;          // else this block has nothing to do
  int e, slot;        // expert; slot of a single pair, or -1
  int row0, row1;     // rows of y
  int lora0;          // first row with an adapter
  int begin, end;     // pages
  int block;          // which rows of the weights
};

// a / b. The compiler's own division takes three times as long; quotients are below two million (tiles of rows, tokens).
DEV int quotient(int a, int b) {
  const int q = (int)((float)a * quick_reciprocal((float)b)), rest = a - q * b;
  return rest < 0 ? q - 1 : rest >= b ? q + 1 : q;
}

// nn: blocks across N. GM: that many tiles of an expert's rows take turns with its blocks, so that both are still in the L2 cache; 0: a tile's blocks
// in a row. naive: tiles are pairs.
DEV Tile find_tile(int first, const int* ids, const int* expert_map, const int* mapping, const int* gtile, const int* nums, int has_map, int lora,
                   int naive, int P, int TOPK, int nn, int EG, int E, int NS, int GM, int pid) {
  Tile t;
  t.slot = -1;
  t.e = t.row0 = t.row1 = t.lora0 = t.begin = t.end = 0;
  int mt = quotient(pid, nn);
  t.block = pid - mt * nn;
  if (naive) {
    t.some = mt < P;
    if (!t.some) return t;
    t.row0 = mt;
    t.row1 = mt + 1;
    t.lora0 = t.row1;
    int e = ids[mt];
    int slot = lora ? mapping[quotient(mt, TOPK)] : -1;
    bool ok = e >= 0 && e < EG;
    if (has_map) e = ok ? expert_map[e] : -1;
    ok = ok && e >= 0 && e < E;
    t.some = ok;
    t.e = e;
    t.slot = slot >= 0 && slot < NS ? slot : -1;
    return t;
  }
  int nm = *(volatile const int*)nums;
  t.some = pid < nm * nn;
  if (!t.some) return t;
  if (GM > 0) {
    const int group = quotient(pid, GM * nn), gm = min(nm - group * GM, GM), in = pid - group * (GM * nn);
    t.block = quotient(in, gm);
    mt = group * GM + in - t.block * gm;
  }
  const volatile int* about = gtile + mt * TILE_WORDS;
  t.e = about[0];
  t.row0 = about[1];
  t.row1 = about[2];
  t.lora0 = t.row1;
  if (lora) {
    t.lora0 = about[3];
    t.begin = about[first ? 4 : 6];
    t.end = about[first ? 5 : 7];
  }
  return t;
}

// A warp's two tiles of the weights on their way through its own slots of shared memory: codes, then ratios, then zero points (ZERO; else codes
// are symmetric). A lane reads only what it copied itself, so nobody waits for anybody. DIRECT: one group a chunk or more, its ratios are loaded with
// load_group and not copied.
template <int Q, int SG, bool ZERO, bool DIRECT = false>
struct Stream {
  static constexpr int CODES = CHUNK * 16 * code_bits(Q) / 8, WORDS = code_bits(Q) / 4, SCALES = DIRECT ? 0 : SG * 128;
  static constexpr int SLOT_BYTES = 2 * (CODES + SCALES * (ZERO ? 2 : 1));
  const uint8_t* codes[2];
  const uint32_t *ratio[2], *zero[2];
  int shift, last;  // last: groups that come after the one at hand

  DEV Stream(const uint8_t* w, const uint32_t* ratios, const uint32_t* zeros, const int64_t (&tile)[2], int chunks, int group_shift, int lane)
      : shift(group_shift) {
    const int groups = SG == 1 ? (chunks + (1 << group_shift) - 1) >> group_shift : chunks;
    last = groups - 1;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      codes[i] = w + tile[i] * chunks * CODES + lane * 16;
      whole(codes[i]);
      if constexpr (SG > 0) {
        ratio[i] = ratios + (tile[i] * groups * 8 + lane / 4) * SG;
        whole(ratio[i]);
      }
      if constexpr (ZERO) {
        zero[i] = zeros + (tile[i] * groups * 8 + lane / 4) * SG;
        whole(zero[i]);
      }
    }
  }

  // slot: the lane's place in it. Offsets in a row of tiles fit 32 bits.
  DEV void copy(uint32_t slot, int c, int lane) {
    copy_codes(slot, (uint32_t)c * CODES, lane);
    copy_ratios(slot, c, lane);
  }

  DEV void copy_codes(uint32_t slot, uint32_t at, int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < CODES / 512; h++) copy16(slot + lane * 16 + i * CODES + h * 512, codes[i] + at + h * 512);
  }

  DEV void copy_ratios(uint32_t slot, int c, int lane) {
    const uint32_t at = (uint32_t)(SG == 1 ? c >> shift : c) * 8 * SG;
    if constexpr (SG > 0 && !DIRECT) {
#pragma unroll
      for (int i = 0; i < 2; i++) copy_words<4 * SG>(slot + lane * 4 * SG + 2 * CODES + i * SCALES, ratio[i] + at);
    }
    if constexpr (ZERO && !DIRECT) {
#pragma unroll
      for (int i = 0; i < 2; i++) copy_words<4 * SG>(slot + lane * 4 * SG + 2 * (CODES + SCALES) + i * SCALES, zero[i] + at);
    }
  }

  // To the ratios and zero points of the group that is `step` groups on, or to the last.
  DEV void next_group(int step) {
    const int on = min(step, last);
    last -= on;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      ratio[i] += on * 8;
      if constexpr (ZERO) zero[i] += on * 8;
    }
  }

  DEV void load_group(int step, uint32_t (&scale)[2], uint32_t (&zeros)[2]) {
    static_assert(DIRECT, "others are copied");
    next_group(step);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      scale[i] = load_constant4(ratio[i]);
      zeros[i] = (Q == U8 ? 128 : 8) * 0x10001;
      if constexpr (ZERO) zeros[i] = load_constant4(zero[i]);
    }
  }

  // Only if `some`, and without zero points.
  DEV void load_ratios(int step, uint32_t (&scale)[2], bool some) {
    static_assert(DIRECT && !ZERO, "others are copied, or needed sooner");
    next_group(some ? step : 0);
#pragma unroll
    for (int i = 0; i < 2; i++) load_constant4(scale[i], ratio[i], some);
  }

  DEV void load_codes(uint32_t slot, uint32_t (&code)[2][4 * WORDS], int lane) {
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < WORDS; h++) *(uint4*)(code[i] + 4 * h) = shared16(slot + lane * 16 + i * CODES + h * 512);
  }

  DEV void load(uint32_t slot, uint32_t (&code)[2][4 * WORDS], uint32_t (&scale)[2][SG > 0 ? SG : 1], uint32_t (&zeros)[2][SG > 0 ? SG : 1], int lane) {
    load_codes(slot, code, lane);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int b = 0; b < (SG > 0 ? SG : 1); b++) {
        zeros[i][b] = (Q == U8 ? 128 : 8) * 0x10001;
        if constexpr (SG > 0) scale[i][b] = shared4(slot + lane * 4 * SG + 2 * CODES + i * SCALES + b * 4);
        if constexpr (ZERO) zeros[i][b] = shared4(slot + lane * 4 * SG + 2 * (CODES + SCALES) + i * SCALES + b * 4);
      }
    }
  }
};

DEV float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }
DEV float at_most(float v, float limit) { return v > limit ? limit : v; }  // keeps NaN
DEV float clip(float v, float limit) { return at_most(v < -limit ? -limit : v, limit); }
DEV float gelu_erf(float v) { return 0.5f * v * (1.0f + erff(v * 0.7071067811865476f)); }
DEV float gelu_tanh(float v) { return v * sigmoid(1.5957691216057308f * (v + 0.044715f * v * v * v)); }

DEV float silu_gated(float g, float u, float limit) {
  float c = at_most(g, limit);
  return c * sigmoid(c) * clip(u, limit);
}

// Codes are the ordinals of Activation.Kind.
DEV float activate_gated(float g, float u, int act, float alpha, float beta, float limit) {
  if (act == 0) return silu_gated(g, u, limit);
  if (act == 1) return gelu_erf(g) * u;
  if (act == 2) return gelu_tanh(g) * u;
  if (act == 3) {
    float c = at_most(g, limit);
    return c * sigmoid(alpha * c) * (clip(u, limit) + beta);
  }
  return at_most(g * sigmoid(g), limit) * clip(u, limit);
}

// act < 0: none.
DEV float activate_single(float u, int act) {
  if (act < 0) return u;
  if (act == 5) return u * sigmoid(u);
  if (act == 6) return gelu_erf(u);
  if (act == 7) return gelu_tanh(u);
  float c = u < 0 ? 0.0f : u;
  return c * c;
}

// B's columns k.. of 16 ranks for rows n + g and n + g + 8, as the A operand; `halves` of the 16 ranks exist.
DEV void factor_operand(uint32_t* a, const uint16_t* b, int64_t stride, int n, int N, int halves, int lane) {
  const uint16_t* p0 = b + min(n + lane / 4, N - 1) * stride + 2 * (lane % 4);
  const uint16_t* p1 = b + min(n + lane / 4 + 8, N - 1) * stride + 2 * (lane % 4);
  a[0] = halves > 0 ? *(const uint32_t*)p0 : 0;
  a[1] = halves > 0 ? *(const uint32_t*)p1 : 0;
  a[2] = halves > 1 ? *(const uint32_t*)(p0 + 8) : 0;
  a[3] = halves > 1 ? *(const uint32_t*)(p1 + 8) : 0;
}

// acc += B . s over pages begin, begin + step, ..; TILES row tiles starting at n[], NJ groups of 8 rows of y from row0 on, seg their
// segments (of row g of each group), or -1. Two products (gated): tile 0 is the first, tile 1 the second projection.
template <class T, int TILES, int NJ, int AHEAD>
DEV void expand_pages(int gated, float (&acc)[TILES][NJ][4], const uint16_t* s, const int64_t* pga, const int64_t* pgb, const int64_t* pgm,
                      const int (&seg)[NJ], int row0, const int (&n)[TILES], int begin, int end, int step, int N, int RS, int SU, int lane) {
#pragma unroll 1
  for (int q = begin; q < end; q += AHEAD * step) {
    int64_t word[AHEAD];
    uint32_t a[AHEAD][TILES][4];
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
      int page = q + u * step;
      word[u] = page < end ? pgm[page] : 0;
      int64_t b1 = page < end ? pga[page] : 0, b2 = gated && page < end ? pgb[page] : 0;
#pragma unroll
      for (int t = 0; t < TILES; t++) {
        bool second = gated && t == 1;
        int halves = (int)(word[u] >> (second ? 58 : 56)) & 3;
        int stride = ((int)(word[u] >> (second ? 40 : 32)) & 0xFF) * 8;
        factor_operand(a[u][t], (const uint16_t*)0 + (second ? b2 : b1) * 8, stride, n[t], N, halves, lane);
      }
    }
#pragma unroll
    for (int u = 0; u < AHEAD; u++) {
      int own = (int)word[u], col = ((int)(word[u] >> 48) & 0xFF) * PAGE + 2 * (lane % 4);
      int h1 = (int)(word[u] >> 56) & 3, h2 = (int)(word[u] >> 58) & 3, up = (word[u] >> 60) & 1 ? 0 : SU;
      bool some = q + u * step < end;
#pragma unroll
      for (int j = 0; j < NJ; j++) {
        bool mine = some && seg[j] == own;
        if (!any_lane(mine)) continue;
        const uint16_t* p = s + (int64_t)(row0 + 8 * j + lane / 4) * RS + col;
        uint32_t b0 = mine && h1 > 0 ? load_new4(p) : 0, b1 = mine && h1 > 1 ? load_new4(p + 8) : 0;
        multiply<T>(acc[0][j], a[u][0], b0, b1);
        if (gated) {
          b0 = mine && h2 > 0 ? load_new4(p + up) : 0;
          b1 = mine && h2 > 1 ? load_new4(p + up + 8) : 0;
        }
        if constexpr (TILES > 1) multiply<T>(acc[1][j], a[u][1], b0, b1);
      }
    }
  }
}
