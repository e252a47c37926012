// aarch64 with I8MM: rows of int8 times codes. USMMLA multiplies two outputs by two rows, eight values of k at once; a row alone takes USDOT.
#include <arm_neon.h>
#define VL 4
#include "vectors.h"
#include "bytes128.h"
#include "scales.h"
#include "int8.h"

// Up to four rows, half a block of outputs: sixteen sums, eight vectors of codes, two of x.
enum { ROWS8 = 4, HALF_VECTORS = HALF / VL };

// Codes of four outputs, unsigned bytes: the first four values of k of each, and the next four.
struct codes {
  uint8x16_t first, next;
};

INLINE struct codes codes_of(const int format, const char *p) {
  const uint8x16_t v = vld1q_u8((const uint8_t *)p);
  if (format == CODE_4) return (struct codes){vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8(v, 4)};
  return (struct codes){v, vld1q_u8((const uint8_t *)p + BLOCK * 4)};
}

// Eight values of k of two rows.
INLINE int8x16_t two_rows(const char *r0, const char *r1) { return vcombine_s8(vld1_s8((const int8_t *)r0), vld1_s8((const int8_t *)r1)); }

INLINE void add_run(vi sum, vi zero, int32_t of_x, vf scale, float *c) { *(vf *)c += __builtin_convertvector(sum - zero * of_x, vf) * scale; }

// m rows times a run of codes of 16 outputs.
INLINE void run_i8mm(const int m, const int format, const char *x, int64_t xs, const char *codes, int64_t k, const vi *zero, const char *of_x, const vf *scale, float *c, int64_t ahead) {
  const int64_t step = format == CODE_4 ? BLOCK * 4 : BLOCK * 8;
  int32x4_t sum[ROWS8 / 2][2 * HALF_VECTORS];
  for (int p = 0; p < ROWS8 / 2; p++)
    for (int j = 0; j < 2 * HALF_VECTORS; j++) sum[p][j] = vdupq_n_s32(0);
  for (int64_t i = 0; i < k; i += 8, codes += step) {
    for (int64_t line = 0; line < step; line += 128) __builtin_prefetch(codes + ahead + line);
    struct codes w[HALF_VECTORS];
    for (int j = 0; j < HALF_VECTORS; j++) w[j] = codes_of(format, codes + j * 16);
    if (m == 1) {
      const int8x8_t v = vld1_s8((const int8_t *)x + i);
      for (int j = 0; j < HALF_VECTORS; j++) sum[0][j] = vusdotq_lane_s32(vusdotq_lane_s32(sum[0][j], w[j].first, v, 0), w[j].next, v, 1);
    } else {
      int8x16_t v[ROWS8 / 2];
      // The last row stands in for one that is missing.
      for (int p = 0; p < (m + 1) / 2; p++) v[p] = two_rows(x + 2 * p * xs + i, x + least(2 * p + 1, m - 1) * xs + i);
      for (int j = 0; j < HALF_VECTORS; j++) {
        const uint32x4_t first = vreinterpretq_u32_u8(w[j].first), next = vreinterpretq_u32_u8(w[j].next);
        const uint8x16_t lower = vreinterpretq_u8_u32(vzip1q_u32(first, next)), upper = vreinterpretq_u8_u32(vzip2q_u32(first, next));
        for (int p = 0; p < (m + 1) / 2; p++) {
          sum[p][2 * j] = vusmmlaq_s32(sum[p][2 * j], lower, v[p]);
          sum[p][2 * j + 1] = vusmmlaq_s32(sum[p][2 * j + 1], upper, v[p]);
        }
      }
    }
  }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < HALF_VECTORS; j++) {
      int32x4_t s = sum[0][j];
      if (m > 1) {
        const int32x4_t a = sum[r / 2][2 * j], b = sum[r / 2][2 * j + 1];
        s = r % 2 ? vuzp2q_s32(a, b) : vuzp1q_s32(a, b);
      }
      add_run((vi)s, zero[j], *(const int32_t *)(of_x + r * xs), scale[j], c + r * BLOCK + j * VL);
    }
}

INLINE void coded_i8mm(const int format, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  const int64_t run = run_of(q), passes = (rows + ROWS8 - 1) / ROWS8;
  for (int64_t i = 0; i < rows * BLOCK; i += VL) *(vf *)(c + i) = (vf){};
  for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {
    const int64_t ahead = pass || !first ? 0 : 4096;
    m = (rows + passes - pass - 1) / (passes - pass);
    for (int64_t k0 = 0, n = 0; k0 < k; k0 += run, n++) {
      const int64_t group = k0 / q->group, length = least(run, k - k0);
      const struct zeros z = zeros_of(q, w, group);
      const char *codes = w + k0 * (format == CODE_4 ? BLOCK / 2 : BLOCK), *of_x = x + k + n * 4;
      for (int half = 0; half < 2; half++) {
        vf scale[HALF_VECTORS];
        for (int j = 0; j < HALF_VECTORS; j++) scale[j] = scales_at(q, w, group, half * HALF + j * VL);
        const char *from = codes + half * HALF * 4;
        const vi *zero = z.of + half * HALF_VECTORS;
        float *to = c + half * HALF;
        switch (m) {
#define CASE(m) case m: run_i8mm(m, format, x + k0, xs, from, length, zero, of_x, scale, to, ahead); break;
          CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
        }
      }
    }
  }
}

void coded8_neoni8mm(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  if (q->format == CODE_4) coded_i8mm(CODE_4, q, x, xs, rows, w, k, c, first);
  else coded_i8mm(CODE_U8X4, q, x, xs, rows, w, k, c, first);
  times_scales(q, expert, x, xs, rows, k, c);
}
