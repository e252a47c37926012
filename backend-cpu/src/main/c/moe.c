// What Java calls. No C library: the same file loads under glibc and musl.
#ifdef __x86_64__
#include <cpuid.h>
#endif
#include "moe.h"

// The compiler may call these.
HIDDEN void *memcpy(void *restrict to, const void *restrict from, __SIZE_TYPE__ n) {
  char *t = to;
  const char *f = from;
  while (n--) *t++ = *f++;
  return to;
}

HIDDEN void *memset(void *to, int v, __SIZE_TYPE__ n) {
  char *t = to;
  while (n--) *t++ = (char)v;
  return to;
}

#ifdef __x86_64__
static long system_call(long n, long a, long b) {
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b) : "rcx", "r11", "memory");
  return r;
}

// The system keeps tiles in a thread's state only for a process that has asked for it.
int32_t permit_amx(void) {
  enum { SYS_ARCH_PRCTL = 158, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return system_call(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

PUBLIC int32_t moe_isa(void) {
  uint32_t a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return ISA_NONE;
  const uint32_t first = bit_OSXSAVE | bit_AVX | bit_FMA | bit_F16C;
  if ((c & first) != first) return ISA_NONE;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & bit_AVX2)) return ISA_NONE;
  uint32_t wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL, tiles = d;
  if ((low & 0xe6) != 0xe6 || (b & wide) != wide) return ISA_AVX2;
  if (a < 1) return ISA_AVX512;
  __get_cpuid_count(7, 1, &a, &b, &c, &d);
  if (!(a & 1u << 5)) return ISA_AVX512;
  const uint32_t amx = 1u << 24 | 1u << 22;
  return (tiles & amx) == amx && (low >> 17 & 3) == 3 && permit_amx() ? ISA_AMX : ISA_BF16;
}

#else
// The system lets programs read which extensions there are.
static uint64_t features(void) {
  uint64_t bits;
  __asm__("mrs %0, ID_AA64ISAR1_EL1" : "=r"(bits));
  return bits;
}

PUBLIC int32_t moe_isa(void) { return (features() >> 44 & 15) ? ISA_NEON_BF16 : ISA_NEON; }
#endif

PUBLIC int64_t moe_abi(int32_t i) {
  const int64_t sizes[] = {sizeof(struct moe_call), sizeof(struct moe_segment), sizeof(struct moe_target), sizeof(struct moe_coded), sizeof(struct moe_source), sizeof(struct moe_route)};
  return i >= 0 && i < 6 ? sizes[i] : -1;
}

static struct kernels table[ISAS];

const struct kernels *kernels_of(int64_t isa) { return table + isa; }

__attribute__((constructor)) static void fill(void) {
#ifdef __x86_64__
  table[ISA_AVX2] = kernels_avx2;
  table[ISA_AVX512] = kernels_avx512;
  table[ISA_BF16] = kernels_avx512;
  table[ISA_BF16].product[TYPE_BF16][TYPE_BF16] = product_bf16_avx512bf16;
  table[ISA_BF16].coded[TYPE_BF16] = coded_avx512bf16;
  table[ISA_BF16].peak = peak_avx512bf16;
  table[ISA_BF16].shrink = shrink_avx512bf16;
  uint32_t a, b, c = 0, d = 0;
  __get_cpuid_count(7, 0, &a, &b, &c, &d);
  if (c & bit_AVX512VNNI) table[ISA_BF16].coded8 = coded8_vnni;
  table[ISA_AMX] = kernels_amx;
  for (int type = 0; type < TYPES; type++) table[ISA_AMX].product[TYPE_F32][type] = kernels_avx512.product[TYPE_F32][type];
  table[ISA_AMX].coded[TYPE_F32] = kernels_avx512.coded[TYPE_F32];
  table[ISA_AMX].dense = kernels_avx512.dense;
  table[ISA_AMX].finish = kernels_avx512.finish;
  table[ISA_AMX].route = kernels_avx512.route;
#ifndef MOE_TILES  // a header that stands in for tiles has all of them
  if (!(d & 1u << 25)) table[ISA_AMX].coded8 = 0;
#endif
#else
  table[ISA_NEON] = kernels_neon;
  if (features() >> 52 & 15) table[ISA_NEON].coded8 = coded8_neoni8mm;
  table[ISA_NEON_BF16] = table[ISA_NEON];
  table[ISA_NEON_BF16].product[TYPE_BF16][TYPE_BF16] = product_bf16_neonbf16;
#endif
}

PUBLIC void moe_gather(const struct moe_call *c, const char *hidden, int32_t type, const float *weight, int64_t first_token, int64_t from, int64_t to) {
  kernels_of(c->isa)->gather(c, hidden, type, weight, first_token, from, to);
}

// bf16 multiply-adds in registers, for benchmarks: operations done, 0 = no units for them.
PUBLIC int64_t moe_peak(int32_t isa, int64_t rounds) { return kernels_of(isa)->peak ? kernels_of(isa)->peak(rounds) : 0; }

// Whether there are units for rows of int8.
PUBLIC int32_t moe_int8(int32_t isa) { return kernels_of(isa)->coded8 != 0; }

PUBLIC void moe_shrink(const struct moe_call *c, int64_t segment, int32_t down) { kernels_of(c->isa)->shrink(c, segment, down); }

PUBLIC void moe_w13(const struct moe_call *c, int64_t expert, int64_t row, int64_t rows, int64_t block, int64_t blocks, int64_t segment, int64_t segments) {
  struct moe_task t = {expert, row, rows, block, blocks, segment, segments};
  kernels_of(c->isa)->w13(c, &t);
}

PUBLIC void moe_w2(const struct moe_call *c, int64_t expert, int64_t row, int64_t rows, int64_t block, int64_t blocks, int64_t segment, int64_t segments) {
  struct moe_task t = {expert, row, rows, block, blocks, segment, segments};
  kernels_of(c->isa)->w2(c, &t);
}

PUBLIC void moe_combine(const struct moe_call *c, const float *weight, int64_t first_token, int64_t from, int64_t to, char *out, int32_t type) {
  kernels_of(c->isa)->combine(c, weight, first_token, from, to, out, type);
}

// y[token][out] = x[token] w[out] + bias[out] for some tokens and outputs; y is F32, bias null or [out].
PUBLIC void moe_dense(int32_t isa, const char *x, int32_t x_type, const char *w, int32_t w_type, int64_t w_stride, const float *bias, char *y, int64_t y_stride, int64_t in, int64_t from,
                      int64_t to, int64_t out, int64_t outs) {
  struct moe_dense d = {from, to, out, outs, in, x_type, w_type, w_stride, y_stride};
  kernels_of(isa)->dense(&d, x, w, bias, y);
}

// out[token] = routed[token] + factor[token] shared[token], halved if `half`, + bias, for some tokens; all F32 but the output. Null: shared = 0, factor = 1, bias = 0.
PUBLIC void moe_finish(int32_t isa, const float *routed, const float *shared, const float *factor, int32_t half, const float *bias, char *out, int32_t type, int64_t hidden, int64_t from, int64_t to) {
  struct moe_finish f = {from, to, hidden, half, type};
  kernels_of(isa)->finish(&f, routed, shared, factor, bias, out);
}

// Experts and weights of tokens from..to-1: logits [token][experts], ids and weights [token][top_k]; bias and scale [experts] or null.
PUBLIC void moe_route(int32_t isa, const struct moe_route *r, const float *logits, const float *bias, const float *scale, int32_t *ids, float *weights, int64_t from, int64_t to) {
  kernels_of(isa)->route(r, logits, bias, scale, ids, weights, from, to);
}

// One block of 32 outputs: 16 rows of one matrix and 16 of another (or of the same one); rows beyond n0 and n1 and columns beyond k are zero.
PUBLIC void moe_pack(char *to, int32_t type, int64_t k, int64_t k_padded, const char *m0, int64_t stride0, int64_t n0, const char *m1, int64_t stride1, int64_t n1) {
  for (int half = 0; half < 2; half++) {
    const char *m = half ? m1 : m0;
    int64_t stride = half ? stride1 : stride0, n = half ? n1 : n0;
    for (int64_t r = 0; r < HALF; r++) {
      const char *from = m + r * stride;
      int64_t have = r < n ? k : 0;
      switch (type) {
        case TYPE_F32: {
          float *t = (float *)to + half * HALF + r;
          for (int64_t i = 0; i < k_padded; i++) t[i * BLOCK] = i < have ? ((const float *)from)[i] : 0;
          break;
        }
        case TYPE_F16: {
          uint16_t *t = (uint16_t *)to + half * HALF + r;
          for (int64_t i = 0; i < k_padded; i++) t[i * BLOCK] = i < have ? ((const uint16_t *)from)[i] : 0;
          break;
        }
        default: {
          // [k / 32][half][k / 2 % 16][row][2]
          uint32_t *t = (uint32_t *)to + half * 256 + r;
          const uint16_t *f = (const uint16_t *)from;
          for (int64_t i = 0; i < k_padded; i += 2) {
            uint32_t low = i < have ? f[i] : 0, high = i + 1 < have ? f[i + 1] : 0;
            t[i / 32 * 512 + i / 2 % 16 * 16] = high << 16 | low;
          }
        }
      }
    }
  }
}

// Rows of x, or of the activations, in the order of an expert's packed values of k, or in int8.
PUBLIC void moe_reorder(const struct moe_call *c, int32_t down, int64_t expert, int64_t from, int64_t to) {
  if (c->int8 >> down & 1) {
    kernels_of(c->isa)->quantise(c, down, expert, from, to);
    return;
  }
  const char *x = down ? c->act : c->x;
  char *copy = down ? c->act2 : c->x13;
  int64_t stride = down ? c->act_stride : c->x_stride, to_stride = down ? c->act2_stride : c->x13_stride, k = down ? c->intermediate_padded : c->hidden_padded;
  const int32_t *order = (down ? c->order2 : c->order13) + expert * k;
  for (int64_t p = from; p < to; p++) {
    if (c->row_type == TYPE_BF16)
      for (int64_t i = 0; i < k; i++) ((uint16_t *)(copy + p * to_stride))[i] = ((const uint16_t *)(x + p * stride))[order[i]];
    else
      for (int64_t i = 0; i < k; i++) ((float *)(copy + p * to_stride))[i] = ((const float *)(x + p * stride))[order[i]];
  }
}

static int64_t field_of(int64_t lie, int64_t bits, int64_t row, int64_t col, int64_t o, int64_t i) {
  static const int8_t awq[8] = {0, 4, 1, 5, 2, 6, 3, 7};
  int64_t per_word = 32 / bits;
  switch (lie) {
    case LIE_DENSE: return o * row + i * col;
    case LIE_ALONG_IN: return o * row + i / per_word * col + i % per_word;
    case LIE_ALONG_OUT: return o / per_word * row + o % per_word + i * col;
    default: return o / 8 * row + awq[o % 8] + i * col;
  }
}

static uint32_t read_field(const char *p, int64_t bits, int64_t at) {
  return bits == 8 ? ((const uint8_t *)p)[at] : ((const uint8_t *)p)[at >> 1] >> (at & 1) * 4 & 15;
}

// Eight codes of a row in the order of a packed word.
static uint32_t word_of(const struct moe_source *m, int64_t o, int64_t i, int64_t n) {
  uint32_t word = 0;
  int dense = ((m->code_lie == LIE_DENSE && m->code_col == 1) || m->code_lie == LIE_ALONG_IN) && !m->order;
  int64_t first = field_of(m->code_lie, 4, m->code_row, m->code_col, o, i);
  if (dense && n == 8 && first % 2 == 0) {
    uint32_t w;
    __builtin_memcpy(&w, m->codes + first / 2, 4);
    uint32_t even = w & 0x0f0f0f0f, odd = w >> 4 & 0x0f0f0f0f;
    even = (even | even >> 4) & 0x00ff00ff;
    odd = (odd | odd >> 4) & 0x00ff00ff;
    return ((even | even >> 8) & 0xffff) | (odd | odd >> 8) << 16;
  }
  for (int64_t j = 0; j < n; j++) word |= read_field(m->codes, 4, field_of(m->code_lie, 4, m->code_row, m->code_col, o, m->order ? m->order[i + j] : i + j)) << (j / 2 + j % 2 * 4) * 4;
  return word;
}

// As moe_pack, for matrices in codes. Returns whether there is something that packed blocks cannot say: a code or a scale that is not a number.
PUBLIC int32_t moe_pack_coded(char *to, const struct moe_coded *q, int64_t k, int64_t k_padded, const struct moe_source *m0, int64_t row0, int64_t n0, const struct moe_source *m1, int64_t row1,
                              int64_t n1) {
  static const int8_t sizes[] = {4, 2, 2, 1, 1};
  int32_t bad = 0;
  int64_t size = sizes[q->scale_type], zero_bytes = q->format == CODE_4 ? HALF : BLOCK;
  for (int64_t lane = 0; lane < BLOCK; lane++) {
    const struct moe_source *m = lane < HALF ? m0 : m1;
    int64_t r = lane % HALF, o = (lane < HALF ? row0 : row1) + r;
    int64_t have = r < (lane < HALF ? n0 : n1) ? k : 0;
    if (q->format == CODE_4)
      for (int64_t i = 0; i < k_padded; i += 8) {
        int64_t n = have - i;
        ((uint32_t *)to)[i / 8 * BLOCK + lane] = n <= 0 ? 0 : word_of(m, o, i, n < 8 ? n : 8);
      }
    else
      for (int64_t i = 0; i < k_padded; i++) {
        uint8_t v = i < have ? read_field(m->codes, 8, field_of(m->code_lie, 8, m->code_row, m->code_col, o, m->order ? m->order[i] : i)) ^ m->flip : 0;
        if (q->format == CODE_E4M3) bad |= (v & 127) == 127;
        if (q->format == CODE_U8X4) to[(i / 4 * BLOCK + lane) * 4 + i % 4] = (char)(v ^ 128);
        else to[i * BLOCK + lane] = (char)v;
      }
    for (int64_t g = 0; g < q->groups; g++) {
      int there = have && g < m->groups;
      if (q->scale_lanes == BLOCK || lane % HALF == 0) {
        char *scale = to + q->scales + (q->scale_lanes == BLOCK ? g * BLOCK + lane : g * 2 + lane / HALF) * size;
        const char *from = m->scales + o / m->scale_rows * m->scale_row + g * m->scale_col;
        for (int64_t b = 0; b < size; b++) scale[b] = there ? from[b] : 0;
        bad |= (q->scale_type == SCALE_E8M0 && (uint8_t)*scale == 255) || (q->scale_type == SCALE_E4M3 && (*scale & 127) == 127);
      }
      if (q->zeros) {
        uint8_t v = there ? read_field(m->zeros, m->zero_bits, field_of(m->zero_lie, m->zero_bits, m->zero_row, m->zero_col, o, g)) : 0;
        uint8_t *zero = (uint8_t *)to + q->zeros + g * zero_bytes + lane % zero_bytes;
        *zero = q->format == CODE_4 && lane >= HALF ? *zero | v << 4 : v;
      }
    }
  }
  return bad;
}
