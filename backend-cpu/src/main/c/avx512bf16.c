// AVX-512 with BF16: pairs of bf16 are multiplied and added to f32 sums (VDPBF16PS).
#include <immintrin.h>
#include "moe.h"
#define INLINE static inline __attribute__((always_inline))

INLINE void rows_bf16(const int m, const char *x, int64_t xs, const char *w, int64_t k, float *c, int64_t ahead) {
  __m512 a[12][2];
  for (int r = 0; r < m; r++) a[r][0] = a[r][1] = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 32, w += 2048, x += 64)
#pragma GCC unroll 4
    for (int q = 0; q < 16; q++) {
      __m512bh w0 = (__m512bh)_mm512_loadu_si512(w + q * 64), w1 = (__m512bh)_mm512_loadu_si512(w + 1024 + q * 64);
      _mm_prefetch(w + ahead + q * 64, _MM_HINT_T0);
      _mm_prefetch(w + ahead + 1024 + q * 64, _MM_HINT_T0);
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

void product_bf16_avx512bf16(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int64_t ahead) {
  for (int64_t left = rows, m; left > 0; left -= m, x += m * xs, c += m * BLOCK, ahead = 0) {
    int64_t groups = (left + 11) / 12;
    m = (left + groups - 1) / groups;
    switch (m) {
#define CASE(n) case n: rows_bf16(n, x, xs, w, k, c, ahead); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#undef CASE
      default: rows_bf16(12, x, xs, w, k, c, ahead); break;
    }
  }
}
