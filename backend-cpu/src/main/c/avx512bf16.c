// AVX-512 with BF16: pairs of bf16 are multiplied and added to f32 sums (VDPBF16PS).
#include <immintrin.h>
#include "passes.h"
#define INLINE static inline __attribute__((always_inline))

INLINE void rows_bf16(const int m, const char *x, int64_t xs, const char *w, int64_t k, float *c, struct fetch f) {
  __m512 a[12][2];
  for (int r = 0; r < m; r++) a[r][0] = a[r][1] = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 32, w += 2048, x += 64)
#pragma GCC unroll 4
    for (int q = 0; q < 16; q++) {
      __m512bh w0 = (__m512bh)_mm512_loadu_si512(w + q * 64), w1 = (__m512bh)_mm512_loadu_si512(w + 1024 + q * 64);
      fetch_next(&f);
      const char *xi = x + q * 4;
      for (int r = 0; r < m; r++, xi += xs) {
        __m512bh v = (__m512bh)_mm512_set1_epi32(*(const int *)xi);
        a[r][0] = _mm512_dpbf16_ps(a[r][0], v, w0);
        a[r][1] = _mm512_dpbf16_ps(a[r][1], v, w1);
      }
    }
  for (int r = 0; r < m; r++) {
    _mm512_storeu_ps(c + r * BLOCK, a[r][0]);
    _mm512_storeu_ps(c + r * BLOCK + 16, a[r][1]);
  }
}

void product_bf16_avx512bf16(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  int64_t passes = (rows + 11) / 12;
  for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {
    struct fetch f = fetch_of(w, k / 2, pass, passes, first);
    m = (rows + passes - pass - 1) / (passes - pass);
    switch (m) {
#define CASE(n) case n: rows_bf16(n, x, xs, w, k, c, f); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
    }
  }
}
