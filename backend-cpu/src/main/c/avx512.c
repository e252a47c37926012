// AVX-512 (F, BW, DQ, VL), f32 arithmetic: weights are widened in registers.
#include <immintrin.h>
#define VL 16
#define NAME(x) x##_avx512
#include "passes.h"
#include "rows.h"
#include "bytes512.h"
#include "scales.h"
#include "block.h"
#include "route.h"

static vh to_f16(vf v) { return (vh)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// Up to twelve rows: 24 sums, four vectors of weights, one of x.
INLINE void rows_f32(const int m, const char *x, int64_t xs, const char *w, int64_t k, float *c, struct fetch f, const int type) {
  __m512 a[12][2];
  for (int r = 0; r < m; r++) a[r][0] = a[r][1] = _mm512_setzero_ps();
  if (type == TYPE_BF16) {
    const __m512i high = _mm512_set1_epi32((int)0xffff0000);
    for (int64_t i = 0; i < k; i += 32, w += 2048)
      for (int q = 0; q < 16; q++) {
        __m512i p0 = _mm512_loadu_si512(w + q * 64), p1 = _mm512_loadu_si512(w + 1024 + q * 64);
        fetch_next(&f);
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
      } else {
        w0 = _mm512_loadu_ps(w + i * 128);
        w1 = _mm512_loadu_ps(w + i * 128 + 64);
      }
      if (type == TYPE_F32 || i % 2) fetch_next(&f);
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

#define CASE(n, type)                                    \
  case n:                                                \
    rows_f32(n, x, xs, w, k, c, f, type);                \
    break;
#define PRODUCT(name, type)                                                                                                \
  static void name(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {              \
    int64_t passes = (rows + 11) / 12;                                                                                     \
    for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {                             \
      struct fetch f = fetch_of(w, type == TYPE_F32 ? k : k / 2, pass, passes, first);                                     \
      m = (rows + passes - pass - 1) / (passes - pass);                                                                    \
      switch (m) {                                                                                                         \
        CASE(1, type) CASE(2, type) CASE(3, type) CASE(4, type) CASE(5, type) CASE(6, type) CASE(7, type) CASE(8, type)    \
        CASE(9, type) CASE(10, type) CASE(11, type) CASE(12, type)                                                         \
      }                                                                                                                    \
    }                                                                                                                      \
  }
PRODUCT(product_f32, TYPE_F32)
PRODUCT(product_bf16, TYPE_BF16)
PRODUCT(product_f16, TYPE_F16)

// 16 words; a value by a look-up that takes the low four bits of each word.
struct words { __m512i v; };
typedef __m512 table_t;
INLINE table_t table_of(const int8_t *t) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)t))); }
INLINE struct words words_of(table_t t, const char *p) { (void)t; return (struct words){_mm512_loadu_si512(p)}; }
INLINE vf nth(table_t t, struct words w, int n) { return (vf)_mm512_permutexvar_ps(n ? _mm512_srli_epi32(w.v, (unsigned)n * 4) : w.v, t); }
enum { FUSED = 6, STEP = 6 };
INLINE int again(int format) { (void)format; return 1; }
#define FUSED_CASES FUSED_CASE(1) FUSED_CASE(2) FUSED_CASE(3) FUSED_CASE(4) FUSED_CASE(5) FUSED_CASE(6)
#define STEP_CASES
#include "coded.h"

const struct kernels kernels_avx512 = {
  .product = {{product_f32, product_bf16, product_f16}, {0, 0, 0}}, .coded = {coded_avx512, 0}, .begin = begin_avx512, .done = done_avx512, .quantise = quantise_avx512,
  .gather = gather_avx512, .shrink = shrink_avx512, .w13 = w13_avx512, .w2 = w2_avx512, .combine = combine_avx512, .dense = dense_avx512, .finish = finish_avx512, .route = route_avx512,
};
