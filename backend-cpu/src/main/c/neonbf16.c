// aarch64 with BF16: pairs of bf16 are multiplied and added to f32 sums (BFDOT).
#include <arm_neon.h>
#include "moe.h"
#include "passes.h"

enum { ROWS = 4, HALF_VECTORS = 4 };

static inline __attribute__((always_inline)) void rows_bf16(const int m, const int h, const char *x, int64_t xs, const char *w, int64_t k, float *c, struct fetch f) {
  float32x4_t a[ROWS][HALF_VECTORS];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < HALF_VECTORS; j++) a[r][j] = vdupq_n_f32(0);
  for (int64_t i = 0; i < k; i += 32, w += 2048)
    for (int q = 0; q < 16; q++) {
      fetch_next(&f);
      bfloat16x8_t v[HALF_VECTORS];
      for (int j = 0; j < HALF_VECTORS; j++) v[j] = vreinterpretq_bf16_u8(vld1q_u8((const uint8_t *)w + h * 1024 + q * 64 + j * 16));
      const char *xi = x + i * 2 + q * 4;
      for (int r = 0; r < m; r++, xi += xs) {
        uint32_t pair;
        __builtin_memcpy(&pair, xi, 4);
        bfloat16x8_t b = vreinterpretq_bf16_u32(vdupq_n_u32(pair));
        for (int j = 0; j < HALF_VECTORS; j++) a[r][j] = vbfdotq_f32(a[r][j], b, v[j]);
      }
    }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < HALF_VECTORS; j++) vst1q_f32(c + r * BLOCK + h * HALF + j * 4, a[r][j]);
}

void product_bf16_neonbf16(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  const int64_t passes = (rows + ROWS - 1) / ROWS;
  const struct fetch none = {w, 0, 0};
  for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {
    struct fetch f = fetch_of(w, k / 2, pass, passes, first);
    m = (rows + passes - pass - 1) / (passes - pass);
    switch (m) {
#define CASE(n)                             \
  case n:                                   \
    rows_bf16(n, 0, x, xs, w, k, c, f);     \
    rows_bf16(n, 1, x, xs, w, k, c, none);  \
    break;
      CASE(1) CASE(2) CASE(3) CASE(4)
#undef CASE
    }
  }
}
