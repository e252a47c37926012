// aarch64 with BF16: pairs of bf16 are multiplied and added to f32 sums. BFMMLA does that for two outputs by two rows and two pairs, one after the other, as
// BFDOT does it for one row; so a row alone comes out the same.
#include <arm_neon.h>
#include "moe.h"
#include "passes.h"

static inline __attribute__((always_inline)) uint32x4_t words_at(const char *p) { return vld1q_u32((const uint32_t *)p); }

enum { ROWS = 4, HALF_VECTORS = HALF / 4 };

// One row, half a block of outputs.
static inline __attribute__((always_inline)) void one_row(const char *x, const char *w, int64_t k, float *c, struct fetch f) {
  float32x4_t a[HALF_VECTORS];
  for (int j = 0; j < HALF_VECTORS; j++) a[j] = vdupq_n_f32(0);
  for (int64_t i = 0; i < k; i += 32, w += 2048, x += 64)
    for (int q = 0; q < 16; q++) {
      fetch_next(&f);
      const bfloat16x8_t b = vreinterpretq_bf16_u32(vdupq_n_u32(*(const uint32_t *)(x + q * 4)));
      for (int j = 0; j < HALF_VECTORS; j++) a[j] = vbfdotq_f32(a[j], b, vreinterpretq_bf16_u32(words_at(w + q * 64 + j * 16)));
    }
  for (int j = 0; j < HALF_VECTORS; j++) vst1q_f32(c + j * 4, a[j]);
}

// Two to four rows: sixteen sums of two outputs by two rows, eight vectors of weights, two of x.
static inline __attribute__((always_inline)) void rows_bf16(const int m, const char *x, int64_t xs, const char *w, int64_t k, float *c, struct fetch f) {
  float32x4_t a[ROWS / 2][2 * HALF_VECTORS];
  for (int p = 0; p < ROWS / 2; p++)
    for (int j = 0; j < 2 * HALF_VECTORS; j++) a[p][j] = vdupq_n_f32(0);
  for (int64_t i = 0; i < k; i += 32, w += 2048, x += 64)
    for (int q = 0; q < 16; q += 2) {
      fetch_next(&f);
      fetch_next(&f);
      bfloat16x8_t v[ROWS / 2];
      // The last row stands in for one that is missing.
      for (int p = 0; p < (m + 1) / 2; p++)
        v[p] = vreinterpretq_bf16_u8(vcombine_u8(vld1_u8((const uint8_t *)x + 2 * p * xs + q * 4), vld1_u8((const uint8_t *)x + (2 * p + 1 < m ? 2 * p + 1 : m - 1) * xs + q * 4)));
      for (int j = 0; j < HALF_VECTORS; j++) {
        const uint32x4_t first = words_at(w + q * 64 + j * 16), next = words_at(w + q * 64 + 64 + j * 16);
        const bfloat16x8_t lower = vreinterpretq_bf16_u32(vzip1q_u32(first, next)), upper = vreinterpretq_bf16_u32(vzip2q_u32(first, next));
        for (int p = 0; p < (m + 1) / 2; p++) {
          a[p][2 * j] = vbfmmlaq_f32(a[p][2 * j], lower, v[p]);
          a[p][2 * j + 1] = vbfmmlaq_f32(a[p][2 * j + 1], upper, v[p]);
        }
      }
    }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < HALF_VECTORS; j++) {
      const float32x4_t lower = a[r / 2][2 * j], upper = a[r / 2][2 * j + 1];
      vst1q_f32(c + r * BLOCK + j * 4, r % 2 ? vuzp2q_f32(lower, upper) : vuzp1q_f32(lower, upper));
    }
}

void product_bf16_neonbf16(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  const int64_t passes = (rows + ROWS - 1) / ROWS;
  for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {
    m = (rows + passes - pass - 1) / (passes - pass);
    for (int half = 0; half < 2; half++) {
      const struct fetch f = half ? (struct fetch){w, 0, 0} : fetch_of(w, k / 2, pass, passes, first);
      const char *from = w + half * 1024;
      float *to = c + half * HALF;
      switch (m) {
        case 1: one_row(x, from, k, to, f); break;
        case 2: rows_bf16(2, x, xs, from, k, to, f); break;
        case 3: rows_bf16(3, x, xs, from, k, to, f); break;
        default: rows_bf16(4, x, xs, from, k, to, f); break;
      }
    }
  }
}
