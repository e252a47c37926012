// aarch64: NEON, f32 arithmetic; weights are widened in registers.
#include <arm_neon.h>
#define VL 4
#define NAME(x) x##_neon
#include "passes.h"
#include "rows.h"

#include "bytes128.h"
static vh to_f16(vf v) { return (vh)vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)); }
#include "scales.h"
#include "block.h"
#include "route.h"

// Up to four rows, half a block of outputs: sixteen sums, four vectors of weights.
enum { HALF_VECTORS = HALF / VL, ROWS = 4 };

INLINE void rows_f32(const int m, const int h, const char *x, int64_t xs, const char *w, int64_t k, float *c, struct fetch f, const int type) {
  vf a[ROWS][HALF_VECTORS];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < HALF_VECTORS; j++) a[r][j] = (vf){};
  if (type == TYPE_BF16) {
    for (int64_t i = 0; i < k; i += 32, w += 2048)
      for (int q = 0; q < 16; q++) {
        fetch_next(&f);
        for (int odd = 0; odd < 2; odd++) {
          vf v[HALF_VECTORS];
          for (int j = 0; j < HALF_VECTORS; j++) {
            vu p = *(const vu *)(w + h * 1024 + q * 64 + j * VL * 4);
            if (odd) v[j] = (vf)(p & 0xffff0000u);
            else v[j] = (vf)(p << 16);
          }
          const char *xi = x + i * 4 + q * 8 + odd * 4;
          for (int r = 0; r < m; r++, xi += xs)
            for (int j = 0; j < HALF_VECTORS; j++) a[r][j] += splat(*(const float *)xi) * v[j];
        }
      }
  } else
    for (int64_t i = 0; i < k; i++) {
      if (type == TYPE_F32 || i % 2) fetch_next(&f);
      vf v[HALF_VECTORS];
      for (int j = 0; j < HALF_VECTORS; j++)
        v[j] = type == TYPE_F16 ? widen_f16(*(const vh *)(w + i * 64 + h * 32 + j * VL * 2)) : *(const vf *)(w + i * 128 + h * 64 + j * VL * 4);
      const char *xi = x + i * 4;
      for (int r = 0; r < m; r++, xi += xs)
        for (int j = 0; j < HALF_VECTORS; j++) a[r][j] += splat(*(const float *)xi) * v[j];
    }
  for (int r = 0; r < m; r++)
    for (int j = 0; j < HALF_VECTORS; j++) *(vf *)(c + r * BLOCK + h * HALF + j * VL) = a[r][j];
}

#define CASE(m, type)                            \
  case m:                                        \
    rows_f32(m, 0, x, xs, w, k, c, f, type);     \
    rows_f32(m, 1, x, xs, w, k, c, none, type);  \
    break;
#define PRODUCT(name, type)                                                                                    \
  static void name(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {  \
    const int64_t passes = (rows + ROWS - 1) / ROWS;                                                           \
    const struct fetch none = {w, 0, 0};                                                                       \
    for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {                 \
      struct fetch f = fetch_of(w, type == TYPE_F32 ? k : k / 2, pass, passes, first);                         \
      m = (rows + passes - pass - 1) / (passes - pass);                                                        \
      switch (m) { CASE(1, type) CASE(2, type) CASE(3, type) CASE(4, type) }                                   \
    }                                                                                                          \
  }
PRODUCT(product_f32, TYPE_F32)
PRODUCT(product_bf16, TYPE_BF16)
PRODUCT(product_f16, TYPE_F16)

// The values of 4 words' even codes and odd codes, a byte each.
struct words { int8x16_t even, odd; };
typedef int8x16_t table_t;
INLINE table_t table_of(const int8_t *t) { return vld1q_s8(t); }
INLINE struct words words_of(table_t t, const char *p) {
  uint8x16_t v = vld1q_u8((const uint8_t *)p);
  return (struct words){vqtbl1q_s8(t, vandq_u8(v, vdupq_n_u8(15))), vqtbl1q_s8(t, vshrq_n_u8(v, 4))};
}
INLINE vf nth(table_t t, struct words w, int n) {
  (void)t;
  vi v = (vi)(n % 2 ? w.odd : w.even);
  return __builtin_convertvector((n / 2 < 3 ? v << (24 - n / 2 * 8) : v) >> 24, vf);
}
enum { FUSED = 2, STEP = 3 };
INLINE int again(int format) { return format == CODE_I8; }
#define FUSED_CASES FUSED_CASE(1) FUSED_CASE(2)
#define STEP_CASES STEP_CASE(2) STEP_CASE(3)
#include "coded.h"

const struct kernels kernels_neon = {
  .product = {{product_f32, product_bf16, product_f16}, {0, 0, 0}}, .coded = {coded_neon, 0}, .begin = begin_neon, .done = done_neon, .quantise = quantise_neon,
  .gather = gather_neon, .shrink = shrink_neon, .w13 = w13_neon, .w2 = w2_neon, .combine = combine_neon, .dense = dense_neon, .finish = finish_neon, .route = route_neon,
};
