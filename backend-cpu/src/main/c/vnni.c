// AVX-512 with VNNI: rows of int8 times codes (VPDPBUSD).
#include <immintrin.h>
#define VL 16
#include "vectors.h"
#include "bytes512.h"
#include "scales.h"
#include "int8.h"

// Rows at once: 24 sums, four vectors of codes, one of x.
enum { ROWS8 = 12 };

INLINE __m512i four_of(const char *x) { return _mm512_set1_epi32(*(const int32_t *)x); }

// GCC 12 copies every sum to another register and back with the intrinsic, which takes twice as long.
INLINE __m512i add_four(__m512i sum, __m512i w, __m512i x) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
  return sum;
}

INLINE void run_vnni(const int m, const int format, const char *x, int64_t xs, const char *codes, int64_t k, const struct zeros *z, const int32_t *of_x, const vf *scale, float *c, int64_t ahead) {
  __m512i sum[ROWS8][2];
  for (int r = 0; r < m; r++) {
    const int32_t s = *(const int32_t *)((const char *)of_x + r * xs);
    for (int j = 0; j < 2; j++) sum[r][j] = (__m512i)(z->of[j] * -s);
  }
  if (format == CODE_4)
    for (int64_t i = 0; i < k; i += 8, codes += 128, x += 8) {
      const __m512i v0 = _mm512_loadu_si512(codes), v1 = _mm512_loadu_si512(codes + 64);
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
      const __m512i a0 = first_nibbles(v0), a1 = first_nibbles(v1), b0 = other_nibbles(v0), b1 = other_nibbles(v1);
      const char *xi = x;
      for (int r = 0; r < m; r++, xi += xs) {
        __m512i v = four_of(xi);
        sum[r][0] = add_four(sum[r][0], a0, v);
        sum[r][1] = add_four(sum[r][1], a1, v);
        v = four_of(xi + 4);
        sum[r][0] = add_four(sum[r][0], b0, v);
        sum[r][1] = add_four(sum[r][1], b1, v);
      }
    }
  else
    for (int64_t i = 0; i < k; i += 4, codes += 128, x += 4) {
      const __m512i v0 = _mm512_loadu_si512(codes), v1 = _mm512_loadu_si512(codes + 64);
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
      const char *xi = x;
      for (int r = 0; r < m; r++, xi += xs) {
        const __m512i v = four_of(xi);
        sum[r][0] = add_four(sum[r][0], v0, v);
        sum[r][1] = add_four(sum[r][1], v1, v);
      }
    }
  for (int r = 0; r < m; r++, c += BLOCK)
    for (int j = 0; j < 2; j++) *(vf *)(c + j * VL) += (vf)_mm512_cvtepi32_ps(sum[r][j]) * scale[j];
}

INLINE void coded_vnni(const int format, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  const int64_t run = run_of(q), passes = (rows + ROWS8 - 1) / ROWS8;
  for (int64_t i = 0; i < rows * BLOCK; i += VL) *(vf *)(c + i) = (vf){};
  for (int64_t pass = 0, m; pass < passes; pass++, rows -= m, x += m * xs, c += m * BLOCK) {
    const int64_t ahead = pass || !first ? 0 : 4096;
    m = (rows + passes - pass - 1) / (passes - pass);
    for (int64_t k0 = 0, n = 0; k0 < k; k0 += run, n++) {
      const int64_t group = k0 / q->group, length = least(run, k - k0);
      const struct zeros z = zeros_of(q, w, group);
      const vf scale[2] = {scales_at(q, w, group, 0), scales_at(q, w, group, VL)};
      const char *codes = w + k0 * (format == CODE_4 ? BLOCK / 2 : BLOCK);
      const int32_t *of_x = (const int32_t *)(x + k) + n;
      switch (m) {
#define CASE(m) case m: run_vnni(m, format, x + k0, xs, codes, length, &z, of_x, scale, c, ahead); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
      }
    }
  }
}

void coded8_vnni(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  if (q->format == CODE_4) coded_vnni(CODE_4, q, x, xs, rows, w, k, c, first);
  else coded_vnni(CODE_U8X4, q, x, xs, rows, w, k, c, first);
  times_scales(q, expert, x, xs, rows, k, c);
}
