// AVX2 with FMA and F16C, f32 arithmetic: weights are widened in registers.
#include <immintrin.h>
#define VL 8
#define NAME(x) x##_avx2
#include "passes.h"
#include "rows.h"

static vf widen_f16(vh h) { return (vf)_mm256_cvtph_ps((__m128i)h); }
INLINE vf widen_i8(const char *p) { return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p))); }
// Sign, exponent and mantissa where a binary16 has them.
INLINE vf widen_e4m3(const char *p) {
  __m128i v = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)p)), 7);
  return (vf)_mm256_cvtph_ps(_mm_and_si128(v, _mm_set1_epi16((short)0xbfff)));
}
#include "scales.h"
#include "block.h"
#include "route.h"
static vh to_f16(vf v) { return (vh)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// Up to three rows of 32 outputs (n = 4 vectors), or up to six of 16, which then are half `h` of the block.
INLINE void rows_f32(const int m, const int n, const int h, const char *x, int64_t xs, const char *w, int64_t k, float *c, struct fetch f, const int type) {
  __m256 a[6][4];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < n; j++) a[r][j] = _mm256_setzero_ps();
  if (type == TYPE_BF16) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    for (int64_t i = 0; i < k; i += 32, w += 2048)
      for (int q = 0; q < 16; q++) {
        fetch_next(&f);
        // Even values of k first, then odd ones: two vectors of weights at a time beside twelve sums and one of x.
        for (int odd = 0; odd < 2; odd++) {
          __m256 v[4];
          for (int j = 0; j < n; j++) {
            __m256i p = _mm256_loadu_si256((const __m256i *)(w + (h + j / 2) * 1024 + q * 64 + j % 2 * 32));
            v[j] = _mm256_castsi256_ps(odd ? _mm256_and_si256(p, high) : _mm256_slli_epi32(p, 16));
          }
          const char *xi = x + i * 4 + q * 8 + odd * 4;
          for (int r = 0; r < m; r++, xi += xs) {
            __m256 b = _mm256_broadcast_ss((const float *)xi);
            for (int j = 0; j < n; j++) a[r][j] = _mm256_fmadd_ps(b, v[j], a[r][j]);
          }
        }
      }
  } else
    for (int64_t i = 0; i < k; i++) {
      if (type == TYPE_F32 || i % 2) fetch_next(&f);
      __m256 v[4];
      for (int j = 0; j < n; j++)
        v[j] = type == TYPE_F16 ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(w + i * 64 + h * 32 + j * 16)))
                                : _mm256_loadu_ps((const float *)(w + i * 128 + h * 64 + j * 32));
      const char *xi = x + i * 4;
      for (int r = 0; r < m; r++, xi += xs) {
        __m256 b = _mm256_broadcast_ss((const float *)xi);
        for (int j = 0; j < n; j++) a[r][j] = _mm256_fmadd_ps(b, v[j], a[r][j]);
      }
    }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < n; j++) _mm256_storeu_ps(c + r * BLOCK + h * 16 + j * 8, a[r][j]);
}

#define WHOLE(m, type)                                  \
  case m:                                               \
    rows_f32(m, 4, 0, x, xs, w, k, c, f, type);         \
    break;
#define HALVES(m, type)                                 \
  case m:                                               \
    rows_f32(m, 2, 0, x, xs, w, k, c, f, type);         \
    rows_f32(m, 2, 1, x, xs, w, k, c, none, type);      \
    break;
#define PRODUCT(name, type)                                                                                    \
  static void name(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {  \
    const int64_t most = type == TYPE_BF16 ? 4 : 6, passes = (rows + most - 1) / most;                         \
    const struct fetch none = {w, 0, 0};                                                                       \
    for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {                 \
      struct fetch f = fetch_of(w, type == TYPE_F32 ? k : k / 2, pass, passes, first);                         \
      m = (rows + passes - pass - 1) / (passes - pass);                                                        \
      switch (m) {                                                                                             \
        WHOLE(1, type) WHOLE(2, type) WHOLE(3, type) HALVES(4, type) HALVES(5, type) HALVES(6, type)           \
      }                                                                                                        \
    }                                                                                                          \
  }
PRODUCT(product_f32, TYPE_F32)
PRODUCT(product_bf16, TYPE_BF16)
PRODUCT(product_f16, TYPE_F16)

// The values of 8 words' even codes and odd codes, a byte each.
struct words { __m256i even, odd; };
typedef __m256i table_t;
INLINE table_t table_of(const int8_t *t) { return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t)); }
INLINE struct words words_of(table_t t, const char *p) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i v = _mm256_loadu_si256((const __m256i *)p);
  return (struct words){_mm256_shuffle_epi8(t, _mm256_and_si256(v, low)), _mm256_shuffle_epi8(t, _mm256_and_si256(_mm256_srli_epi16(v, 4), low))};
}
INLINE vf nth(table_t t, struct words w, int n) {
  (void)t;
  __m256i v = n % 2 ? w.odd : w.even;
  return (vf)_mm256_cvtepi32_ps(_mm256_srai_epi32(n / 2 < 3 ? _mm256_slli_epi32(v, 24 - n / 2 * 8) : v, 24));
}
enum { FUSED = 2, STEP = 3 };
INLINE int again(int format) { return format == CODE_I8; }
#define FUSED_CASES FUSED_CASE(1) FUSED_CASE(2)
#define STEP_CASES STEP_CASE(2) STEP_CASE(3)
#include "coded.h"

const struct kernels kernels_avx2 = {
  .product = {{product_f32, product_bf16, product_f16}, {0, 0, 0}}, .coded = {coded_avx2, 0}, .begin = begin_avx2, .done = done_avx2, .quantise = quantise_avx2,
  .gather = gather_avx2, .shrink = shrink_avx2, .w13 = w13_avx2, .w2 = w2_avx2, .combine = combine_avx2, .dense = dense_avx2, .finish = finish_avx2, .route = route_avx2,
};
