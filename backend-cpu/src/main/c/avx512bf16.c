// AVX-512 with BF16: pairs of bf16 are multiplied and added to f32 sums (VDPBF16PS).
#include <immintrin.h>
#define VL 16
#include "passes.h"
#include "vectors.h"
#include "bytes512.h"
#include "scales.h"
#include "pairs.h"

enum { IN_ORDER = 6 };

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

// Few rows, for which reading is the limit: the 16 outputs of one half after those of the other, so that weights are read from front to back. Processors fetch
// those ahead by themselves, up to 1.5 times as fast as with fetches of ours, which only take places among theirs. Sums are in the same order.
INLINE void half_in_order(const int m, const char *x, int64_t xs, const char *w, __m512 *a) {
#pragma GCC unroll 4
  for (int q = 0; q < 16; q++, w += 64, x += 4) {
    const __m512bh v = (__m512bh)_mm512_loadu_si512(w);
    const char *xi = x;
    for (int r = 0; r < m; r++, xi += xs) a[r] = _mm512_dpbf16_ps(a[r], (__m512bh)_mm512_set1_epi32(*(const int *)xi), v);
  }
}

INLINE void rows_in_order(const int m, const char *x, int64_t xs, const char *w, int64_t k, float *c) {
  __m512 a[IN_ORDER], b[IN_ORDER];
  for (int r = 0; r < m; r++) a[r] = b[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < k; i += 32, w += 2048, x += 64) {
    half_in_order(m, x, xs, w, a);
    half_in_order(m, x, xs, w + 1024, b);
  }
  for (int r = 0; r < m; r++) {
    _mm512_storeu_ps(c + r * BLOCK, a[r]);
    _mm512_storeu_ps(c + r * BLOCK + 16, b[r]);
  }
}

void product_bf16_avx512bf16(const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  switch (rows) {
#define CASE(n) case n: rows_in_order(n, x, xs, w, k, c); return;
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
    default: break;
  }
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

// Weights in codes: every value of a code is exact in bf16, and scales stay f32. As in coded.h, but pairs of k instead of single ones: a stretch has a
// sum of even pairs and one of odd ones. No zero points.
// 8-bit codes take longer to widen than to multiply: for more rows than one pass takes they are widened once, into PAIRS: [k / 2][32] pairs.
enum { CODED_ROWS = 6, PAIRS = -1 };

INLINE void add_pair(const int m, const char *x, int64_t xs, __m512i w0, __m512i w1, int odd, __m512 sum[][2][2]) {
  for (int r = 0; r < m; r++, x += xs) {
    __m512bh v = (__m512bh)_mm512_set1_epi32(*(const int *)x);
    sum[r][0][odd] = _mm512_dpbf16_ps(sum[r][0][odd], v, (__m512bh)w0);
    sum[r][1][odd] = _mm512_dpbf16_ps(sum[r][1][odd], v, (__m512bh)w1);
  }
}

INLINE void stretch_bf16(const int m, const int format, __m512i table, const char *x, int64_t xs, const char *codes, int64_t k, const vf *scale, float *c, int64_t ahead) {
  __m512 sum[CODED_ROWS][2][2];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) sum[r][j / 2][j % 2] = _mm512_setzero_ps();
  if (format == CODE_4)
    for (int64_t i = 0; i < k; i += 8, codes += 128, x += 16) {
      __m512i v0 = _mm512_loadu_si512(codes), v1 = _mm512_loadu_si512(codes + 64);
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
#pragma GCC unroll 4
      for (int n = 0; n < 4; n++)
        add_pair(m, x + n * 4, xs, pairs_of(table, v0, n), pairs_of(table, v1, n), n % 2, sum);
    }
  else if (format == PAIRS)
    for (int64_t i = 0; i < k; i += 4, codes += 256, x += 8)
#pragma GCC unroll 2
      for (int n = 0; n < 2; n++) add_pair(m, x + n * 4, xs, _mm512_load_si512(codes + n * 128), _mm512_load_si512(codes + n * 128 + 64), n, sum);
  else
    for (int64_t i = 0; i < k; i += 4, codes += 4 * BLOCK, x += 8) {
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
#pragma GCC unroll 2
      for (int n = 0; n < 2; n++) {
        const char *p = codes + n * 2 * BLOCK;
        add_pair(m, x + n * 4, xs, pair_of(byte_value(p, format), byte_value(p + BLOCK, format)), pair_of(byte_value(p + VL, format), byte_value(p + BLOCK + VL, format)), n, sum);
      }
    }
  for (int r = 0; r < m; r++, c += BLOCK)
    for (int j = 0; j < 2; j++) *(vf *)(c + j * VL) += ((vf)sum[r][j][0] + (vf)sum[r][j][1]) * scale[j];
}

#define CASE(m) case m: stretch_bf16(m, format, table, xr, xs, codes, n, scale, to, ahead); break;
INLINE void passes_bf16(const int format, __m512i table, const char *xr, int64_t xs, int64_t rows, const char *codes, int64_t n, const vf *scale, float *to, int first) {
  int64_t passes = (rows + CODED_ROWS - 1) / CODED_ROWS;
  for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, xr += m * xs, to += m * BLOCK) {
    int64_t ahead = pass || !first ? 0 : 4096;
    m = (rows + passes - pass - 1) / (passes - pass);
    switch (m) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
  }
}
#undef CASE

INLINE void coded_bf16(const int format, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  char pairs[STRETCH * BLOCK * 2] __attribute__((aligned(64)));
  const __m512i table = pair_table(q);
  for (int64_t i = 0; i < rows * BLOCK; i += VL) *(vf *)(c + i) = (vf){};
  int64_t group = 0, left = q->group;
  for (int64_t k0 = 0; k0 < k;) {
    int64_t n = least(least(q->stretch, k - k0), left);
    const char *codes = w + k0 * (format == CODE_4 ? BLOCK / 2 : BLOCK);
    vf scale[2] = {scales_at(q, w, group, 0), scales_at(q, w, group, VL)};
    if (format != CODE_4 && rows > CODED_ROWS) {
      widen_pairs(format, table, codes, n, pairs, first ? 4096 : 0);
      passes_bf16(PAIRS, table, x + k0 * 2, xs, rows, pairs, n, scale, c, 0);
    } else {
      passes_bf16(format, table, x + k0 * 2, xs, rows, codes, n, scale, c, first);
    }
    k0 += n;
    left -= n;
    if (left == 0) {
      group++;
      left = q->group;
    }
  }
}

void coded_avx512bf16(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  switch (q->format) {
    case CODE_4: coded_bf16(CODE_4, q, x, xs, rows, w, k, c, first); break;
    case CODE_I8: coded_bf16(CODE_I8, q, x, xs, rows, w, k, c, first); break;
    default: coded_bf16(CODE_E4M3, q, x, xs, rows, w, k, c, first); break;
  }
  const float *factor = q->factors + expert * 2;
  for (int64_t r = 0; r < rows; r++, c += BLOCK)
    for (int64_t i = 0; i < BLOCK; i += VL) *(vf *)(c + i) *= factor[i / HALF];
}

// A's products of bf16 rows: pairs along k are what the units multiply, so neither side is widened.
static void shrink_target(const struct moe_target *t, const char *x, int64_t xs, int64_t rows, int64_t in, int64_t s_stride) {
  const __mmask32 tail = (__mmask32)((1ULL << in % 32) - 1);
  for (int64_t k0 = 0; k0 < t->rank; k0 += 4)
    for (int64_t r0 = 0; r0 < rows; r0 += 4) {
      int64_t ks = least(4, t->rank - k0), rs = least(4, rows - r0);
      __m512 sum[4][4];
      // The last ranks and rows are read twice rather than asked for each time.
      const char *a[4], *p[4];
      for (int j = 0; j < 4; j++) {
        a[j] = t->a + (k0 + least(j, ks - 1)) * t->a_row;
        p[j] = x + (r0 + least(j, rs - 1)) * xs;
        for (int r = 0; r < 4; r++) sum[j][r] = _mm512_setzero_ps();
      }
      int64_t i = 0;
      for (; i + 32 <= in; i += 32) {
        __m512bh v[4];
        for (int r = 0; r < 4; r++) v[r] = (__m512bh)_mm512_loadu_si512(p[r] + i * 2);
        for (int j = 0; j < 4; j++) {
          __m512bh w = (__m512bh)_mm512_loadu_si512(a[j] + i * 2);
          if (r0 == 0) __builtin_prefetch(a[j] + i * 2 + 1024);
          for (int r = 0; r < 4; r++) sum[j][r] = _mm512_dpbf16_ps(sum[j][r], w, v[r]);
        }
      }
      if (i < in)
        for (int j = 0; j < 4; j++) {
          __m512bh w = (__m512bh)_mm512_maskz_loadu_epi16(tail, a[j] + i * 2);
          for (int r = 0; r < 4; r++) sum[j][r] = _mm512_dpbf16_ps(sum[j][r], w, (__m512bh)_mm512_maskz_loadu_epi16(tail, p[r] + i * 2));
        }
      for (int j = 0; j < ks; j++)
        for (int r = 0; r < rs; r++) ((float *)((char *)t->s + (r0 + r) * s_stride))[k0 + j] = _mm512_reduce_add_ps(sum[j][r]);
    }
}

void shrink_avx512bf16(const struct moe_call *c, int64_t segment, int32_t down) {
  const struct moe_segment *g = c->segments + segment;
  for (int i = down ? DOWN : GATE; i <= (down ? DOWN : UP); i++) {
    const struct moe_target *t = g->target + i;
    const char *x = down ? c->act + g->from * c->act_stride : c->x + g->from * c->x_stride;
    if (t->rank == 0 || !t->own_shrink) continue;
    if (c->row_type == TYPE_BF16 && t->a_type == TYPE_BF16 && t->a_col == 2)
      shrink_target(t, x, down ? c->act_stride : c->x_stride, g->to - g->from, down ? c->intermediate : c->hidden, c->s_stride);
    else
      shrink_target_avx512(c, t, x, down ? c->act_stride : c->x_stride, g->to - g->from, down ? c->intermediate : c->hidden);
  }
}

int64_t peak_avx512bf16(int64_t rounds) {
  __m512 a[12];
  __m512bh one = (__m512bh)_mm512_set1_epi16(0x3f80);
#pragma GCC unroll 12
  for (int i = 0; i < 12; i++) a[i] = _mm512_setzero_ps();
  for (int64_t n = 0; n < rounds; n++)
#pragma GCC unroll 12
    for (int i = 0; i < 12; i++) {
      a[i] = _mm512_dpbf16_ps(a[i], one, one);
      __asm__ volatile("" : "+v"(a[i]));
    }
  return rounds * 12 * 64;
}
