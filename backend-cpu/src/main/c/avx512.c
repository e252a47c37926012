// AVX-512 (F, BW, DQ, VL), f32 arithmetic: weights are widened in registers.
#include <immintrin.h>
#define VL 16
#define NAME(x) x##_avx512
#include "rows.h"

static vf widen_f16(vh h) { return (vf)_mm512_cvtph_ps((__m256i)h); }
static vh to_f16(vf v) { return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// Up to twelve rows: 24 sums, four vectors of weights, one of x.
INLINE void rows_f32(const int m, const char *x, int64_t xs, const char *w, int64_t k, float *c, int64_t ahead, const int type) {
  __m512 a[12][2];
  for (int r = 0; r < m; r++) a[r][0] = a[r][1] = _mm512_setzero_ps();
  if (type == TYPE_BF16) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
    for (int64_t i = 0; i < k; i += 32, w += 2048)
      for (int q = 0; q < 16; q++) {
        __m512i p0 = _mm512_loadu_si512(w + q * 64), p1 = _mm512_loadu_si512(w + 1024 + q * 64);
        _mm_prefetch(w + ahead + q * 64, _MM_HINT_T0);
        _mm_prefetch(w + ahead + 1024 + q * 64, _MM_HINT_T0);
        __m512 e0 = _mm512_castsi512_ps(_mm512_slli_epi32(p0, 16)), e1 = _mm512_castsi512_ps(_mm512_slli_epi32(p1, 16));
        __m512 o0 = _mm512_castsi512_ps(_mm512_and_si512(p0, high)), o1 = _mm512_castsi512_ps(_mm512_and_si512(p1, high));
        const char *xi = x + i * 4 + q * 8;
        for (int r = 0; r < m; r++, xi += xs) {
          __m512 v = _mm512_set1_ps(*(const float *)xi);
          a[r][0] = _mm512_fmadd_ps(v, e0, a[r][0]);
          a[r][1] = _mm512_fmadd_ps(v, e1, a[r][1]);
          v = _mm512_set1_ps(*(const float *)(xi + 4));
          a[r][0] = _mm512_fmadd_ps(v, o0, a[r][0]);
          a[r][1] = _mm512_fmadd_ps(v, o1, a[r][1]);
        }
      }
  } else
    for (int64_t i = 0; i < k; i++) {
      __m512 w0, w1;
      if (type == TYPE_F16) {
        w0 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w + i * 64)));
        w1 = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(w + i * 64 + 32)));
        _mm_prefetch(w + ahead + i * 64, _MM_HINT_T0);
      } else {
        w0 = _mm512_loadu_ps(w + i * 128);
        w1 = _mm512_loadu_ps(w + i * 128 + 64);
        _mm_prefetch(w + ahead + i * 128, _MM_HINT_T0);
        _mm_prefetch(w + ahead + i * 128 + 64, _MM_HINT_T0);
      }
      const char *xi = x + i * 4;
      for (int r = 0; r < m; r++, xi += xs) {
        __m512 v = _mm512_set1_ps(*(const float *)xi);
        a[r][0] = _mm512_fmadd_ps(v, w0, a[r][0]);
        a[r][1] = _mm512_fmadd_ps(v, w1, a[r][1]);
      }
    }
  for (int r = 0; r < m; r++) {
    _mm512_storeu_ps(c + r * BLOCK, a[r][0]);
    _mm512_storeu_ps(c + r * BLOCK + 16, a[r][1]);
  }
}

#define PRODUCT(name, type)                                                                                                              \
  static void name(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int64_t ahead) {                       \
    for (int64_t left = rows, m; left > 0; left -= m, x += m * xs, c += m * BLOCK, ahead = 0) {                                         \
      int64_t groups = (left + 11) / 12;                                                                                                \
      m = (left + groups - 1) / groups;                                                                                                 \
      switch (m) {                                                                                                                      \
        case 1: rows_f32(1, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 2: rows_f32(2, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 3: rows_f32(3, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 4: rows_f32(4, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 5: rows_f32(5, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 6: rows_f32(6, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 7: rows_f32(7, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 8: rows_f32(8, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 9: rows_f32(9, x, xs, w, k, c, ahead, type); break;                                                                        \
        case 10: rows_f32(10, x, xs, w, k, c, ahead, type); break;                                                                      \
        case 11: rows_f32(11, x, xs, w, k, c, ahead, type); break;                                                                      \
        default: rows_f32(12, x, xs, w, k, c, ahead, type); break;                                                                      \
      }                                                                                                                                 \
    }                                                                                                                                   \
  }
PRODUCT(product_f32, TYPE_F32)
PRODUCT(product_bf16, TYPE_BF16)
PRODUCT(product_f16, TYPE_F16)

static void done(void) {}

const struct kernels kernels_avx512 = {
  {{product_f32, product_bf16, product_f16}, {0, 0, 0}}, done, gather_avx512, shrink_avx512, w13_avx512, w2_avx512, combine_avx512,
};
