// Products of rows of bf16 with weights in codes, on tiles. Included by amx.c.

// Weights in codes: a stretch becomes bf16 in the first-level cache and is multiplied there, so that it is widened once for all rows.
#define MULTIPLY(to, x, w)            \
  do {                                \
    if (int8) _tile_dpbsud(to, x, w); \
    else _tile_dpbf16ps(to, x, w);    \
  } while (0)
INLINE void stretch_tiles(const int int8, const char *x, int64_t second, int64_t xs, const char *w, int64_t bytes, int64_t step, float *sums) {
  _tile_zero(0);
  _tile_zero(1);
  if (second) {
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < bytes; i += step, w += step * 32) {
      _tile_loadd(6, w, 128);
      _tile_loadd(4, x + i, xs);
      MULTIPLY(0, 4, 6);
      _tile_loadd(7, w + 64, 128);
      MULTIPLY(1, 4, 7);
      _tile_loadd(5, x + second * xs + i, xs);
      MULTIPLY(2, 5, 6);
      MULTIPLY(3, 5, 7);
    }
    _tile_stored(2, sums + 16 * BLOCK, BLOCK * 4);
    _tile_stored(3, sums + 16 * BLOCK + 16, BLOCK * 4);
  } else
    for (int64_t i = 0; i < bytes; i += step, w += step * 32) {
      _tile_loadd(6, w, 128);
      _tile_loadd(7, w + 64, 128);
      _tile_loadd(4, x + i, xs);
      MULTIPLY(0, 4, 6);
      MULTIPLY(1, 4, 7);
    }
  _tile_stored(0, sums, BLOCK * 4);
  _tile_stored(1, sums + 16, BLOCK * 4);
}

// Which rows two tiles take: 16 from `at` on, and, if `second`, 16 more that many rows later.
struct window {
  int64_t at, second;
};

// For the next rows of 0..rows-1, of which `done` have been done.
INLINE struct window window_of(int64_t done, int64_t rows) {
  const int64_t n = rows - done;
  if (n >= 32) return (struct window){done, 16};
  if (n > 16) return (struct window){done, n - 16};
  return (struct window){rows < 16 ? 0 : rows - 16, 0};
}

// Where the sums of row `r` stand.
INLINE const float *sums_of(const float *sums, struct window s, int64_t r) { return sums + (r - s.at < 16 ? r - s.at : 16 + r - s.at - s.second) * BLOCK; }

INLINE void coded_tiles(const int format, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  char pairs[STRETCH * BLOCK * 2] __attribute__((aligned(64)));
  float sums[32 * BLOCK] __attribute__((aligned(64)));
  const __m512i table = pair_table(q);
  const int64_t code_bytes = format == CODE_4 ? BLOCK / 2 : BLOCK, step = tile_step(q);
  for (int64_t i = 0; i < rows * BLOCK; i += VL) *(vf *)(c + i) = (vf){};
  int64_t group = 0, left = q->group;
  for (int64_t k0 = 0, m; k0 < k; k0 += m) {
    m = least(least(q->stretch, k - k0), left);
    widen_pairs(format, table, w + k0 * code_bytes, m, pairs, first ? 4096 : 0);
    const vf scale[2] = {scales_at(q, w, group, 0), scales_at(q, w, group, VL)};
    for (int64_t r = 0; r < rows;) {
      const struct window s = window_of(r, rows);
      stretch_tiles(0, x + s.at * xs + k0 * 2, s.second, xs, pairs, m * 2, step * 2, sums);
      for (const int64_t end = least(r + 32, rows); r < end; r++)
        for (int j = 0; j < 2; j++) *(vf *)(c + r * BLOCK + j * VL) += *(const vf *)(sums_of(sums, s, r) + j * VL) * scale[j];
    }
    left -= m;
    if (left == 0) {
      group++;
      left = q->group;
    }
  }
}

// Few rows: vectors, since tiles take as long for one row as for eight. They have the bits of tiles, whose products have a sum of even values of k and one of odd ones, add
// those to each other, then to what was there, and take denormal numbers for zeros. In groups of 16 and fewer tiles are smaller; those stay on them.
enum { FEW = 2 };

// A step of k of one tile: even and odd sums of what `codes` and rows of f32 at `x`, STRETCH apart, make.
INLINE void step_few(const int m, const int format, __m512 table, const float *x, const char *codes, const int step, int64_t ahead, vf sum[][2][2]) {
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) sum[r][j / 2][j % 2] = (vf){};
  if (format == CODE_4)
#pragma GCC unroll 4
    for (int i = 0; i < step; i += 8, codes += 128) {
      const __m512i v0 = _mm512_loadu_si512(codes), v1 = _mm512_loadu_si512(codes + 64);
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
#pragma GCC unroll 8
      for (int n = 0; n < 8; n++) {
        const int shift = n / 2 * 4 + n % 2 * 16;
        const vf w0 = (vf)_mm512_permutexvar_ps(shift ? _mm512_srli_epi32(v0, shift) : v0, table), w1 = (vf)_mm512_permutexvar_ps(shift ? _mm512_srli_epi32(v1, shift) : v1, table);
        for (int r = 0; r < m; r++) {
          const vf b = splat(x[r * STRETCH + i + n]);
          sum[r][0][n % 2] += b * w0;
          sum[r][1][n % 2] += b * w1;
        }
      }
    }
  else
#pragma GCC unroll 4
    for (int i = 0; i < step; i += 2, codes += 2 * BLOCK) {
      __builtin_prefetch(codes + ahead);
#pragma GCC unroll 2
      for (int n = 0; n < 2; n++) {
        const vf w0 = byte_value(codes + n * BLOCK, format), w1 = byte_value(codes + n * BLOCK + VL, format);
        for (int r = 0; r < m; r++) {
          const vf b = splat(x[r * STRETCH + i + n]);
          sum[r][0][n] += b * w0;
          sum[r][1][n] += b * w1;
        }
      }
    }
}

INLINE void coded_few(const int m, const int format, const int step, const struct moe_coded *q, const char *x, int64_t xs, const char *w, int64_t k, float *c, int first) {
  const __m512 table = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)q->table)));
  const int64_t code_bytes = format == CODE_4 ? BLOCK / 2 : BLOCK, stretch = q->stretch, ahead = first ? 4096 : 0;
  float wide[FEW * STRETCH] __attribute__((aligned(64)));
  vf out[FEW][2];
  for (int r = 0; r < m; r++) out[r][0] = out[r][1] = (vf){};
  int64_t group = 0, group_end = q->group;
  for (int64_t k0 = 0; k0 < k; k0 += stretch) {
    const int64_t n = least(stretch, k - k0);
    if (k0 == group_end) {
      group++;
      group_end += q->group;
    }
    const vf scale[2] = {scales_at(q, w, group, 0), scales_at(q, w, group, VL)};
    vf total[FEW][2];
    for (int r = 0; r < m; r++) {
      for (int64_t i = 0; i < n; i += VL) *(vf *)(wide + r * STRETCH + i) = widen_bf16(*(const vh *)(x + r * xs + (k0 + i) * 2));
      total[r][0] = total[r][1] = (vf){};
    }
    for (int64_t i = 0; i < n; i += step) {
      vf sum[FEW][2][2];
      step_few(m, format, table, wide + i, w + (k0 + i) * code_bytes, step, ahead, sum);
      for (int r = 0; r < m; r++)
        for (int j = 0; j < 2; j++) total[r][j] += sum[r][j][0] + sum[r][j][1];
    }
    for (int r = 0; r < m; r++)
      for (int j = 0; j < 2; j++) out[r][j] += total[r][j] * scale[j];
  }
  for (int r = 0; r < m; r++, c += BLOCK)
    for (int j = 0; j < 2; j++) *(vf *)(c + j * VL) = out[r][j];
}

INLINE void times_factor(const struct moe_coded *q, int64_t expert, int64_t rows, float *c) {
  const float *factor = q->factors + expert * 2;
  for (int64_t r = 0; r < rows; r++, c += BLOCK)
    for (int64_t i = 0; i < BLOCK; i += VL) *(vf *)(c + i) *= factor[i / HALF];
}

#define FEW_CASE(m, format) case m: coded_few(m, format, 32, q, x, xs, w, k, c, first); return;
#define PRODUCT(name, format)                                                                                                                                     \
  __attribute__((noinline)) static void name(const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) { \
    if (rows <= FEW && q->stretch % 32 == 0) switch (rows) { FEW_CASE(1, format) FEW_CASE(2, format) }                                                            \
    coded_tiles(format, q, x, xs, rows, w, k, c, first);                                                                                                          \
  }
PRODUCT(product_code4, CODE_4)
PRODUCT(product_i8, CODE_I8)
PRODUCT(product_e4m3, CODE_E4M3)

static void coded(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  // Denormal numbers are zeros to tiles, so they are to vectors as well.
  const uint32_t mode = _mm_getcsr();
  _mm_setcsr(mode | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
  switch (q->format) {
    case CODE_4: product_code4(q, x, xs, rows, w, k, c, first); break;
    case CODE_I8: product_i8(q, x, xs, rows, w, k, c, first); break;
    default: product_e4m3(q, x, xs, rows, w, k, c, first); break;
  }
  _mm_setcsr(mode);
  times_factor(q, expert, rows, c);
}

