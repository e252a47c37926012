// Products with weights in codes: 4-bit ones by a table of 16 values, 8-bit integers, 8-bit floats (E4M3). Included by each instruction set behind
// rows.h, with FUSED (rows of a pass in which codes are widened and multiplied), again(format) (whether more rows take more such passes, or one that
// leaves widened values, and passes of STEP rows over those), and
//   struct words, words_of(table, p): the codes of VL outputs and 8 values of k;  nth(table, words, n): the values of the n-th field
//
// A stretch is what shares scales, or a part of it. Its products are summed by themselves, even values of k and odd ones; then the two sums together
// times the scale are added to what came before. The same order whatever the number of rows.

#define STEPS (BLOCK / (2 * VL))   // steps of two vectors that make a block

// What a stretch adds to m rows of c, columns `lane` and further ones of two vectors.
INLINE void add_scaled(const int m, vf sum[][2][2], const vf *scale, float *c) {
  for (int r = 0; r < m; r++, c += BLOCK)
    for (int j = 0; j < 2; j++) *(vf *)(c + j * VL) += (sum[r][j][0] + sum[r][j][1]) * scale[j];
}

// m rows times a stretch of codes, two vectors of outputs.
INLINE void fused(const int m, const int format, const int asymmetric, const struct moe_coded *q, const char *x, int64_t xs, const char *codes, int64_t k, const vf *zero, const vf *scale, float *c,
                  int64_t ahead) {
  vf sum[FUSED][2][2];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) sum[r][j / 2][j % 2] = (vf){};
  if (format == CODE_4) {
    table_t table = table_of(q->table);
    for (int64_t i = 0; i < k; i += 8, codes += 128) {
      struct words v0 = words_of(table, codes), v1 = words_of(table, codes + VL * 4);
      __builtin_prefetch(codes + ahead);
      __builtin_prefetch(codes + ahead + 64);
#pragma GCC unroll 8
      for (int n = 0; n < 8; n++) {
        vf w0 = nth(table, v0, n / 2 + n % 2 * 4), w1 = nth(table, v1, n / 2 + n % 2 * 4);
        if (asymmetric) w0 -= zero[0], w1 -= zero[1];
        for (int r = 0; r < m; r++) {
          vf b = splat(*(const float *)(x + r * xs + (i + n) * 4));
          sum[r][0][n % 2] += b * w0;
          sum[r][1][n % 2] += b * w1;
        }
      }
    }
  } else
    for (int64_t i = 0; i < k; i += 2, codes += 2 * BLOCK) {
      __builtin_prefetch(codes + ahead);
#pragma GCC unroll 2
      for (int n = 0; n < 2; n++) {
        vf w0 = byte_value(codes + n * BLOCK, format), w1 = byte_value(codes + n * BLOCK + VL, format);
        if (asymmetric) w0 -= zero[0], w1 -= zero[1];
        for (int r = 0; r < m; r++) {
          vf b = splat(*(const float *)(x + r * xs + (i + n) * 4));
          sum[r][0][n] += b * w0;
          sum[r][1][n] += b * w1;
        }
      }
    }
  add_scaled(m, sum, scale, c);
}

// The same for values that have been widened, [k][two vectors].
INLINE void widened(const int m, const char *x, int64_t xs, const float *w, int64_t k, const vf *scale, float *c) {
  vf sum[STEP][2][2];
  for (int r = 0; r < m; r++)
    for (int j = 0; j < 4; j++) sum[r][j / 2][j % 2] = (vf){};
  for (int64_t i = 0; i < k; i += 2, w += 4 * VL)
#pragma GCC unroll 2
    for (int n = 0; n < 2; n++) {
      vf w0 = *(const vf *)(w + n * 2 * VL), w1 = *(const vf *)(w + n * 2 * VL + VL);
      for (int r = 0; r < m; r++) {
        vf b = splat(*(const float *)(x + r * xs + (i + n) * 4));
        sum[r][0][n] += b * w0;
        sum[r][1][n] += b * w1;
      }
    }
  add_scaled(m, sum, scale, c);
}

INLINE void widen_stretch(const int format, const int asymmetric, const struct moe_coded *q, const char *codes, int64_t k, const vf *zero, float *to, int64_t ahead) {
  if (format == CODE_4) {
    table_t table = table_of(q->table);
    for (int64_t i = 0; i < k; i += 8, codes += 128, to += 16 * VL) {
      struct words v0 = words_of(table, codes), v1 = words_of(table, codes + VL * 4);
      if (ahead) {
        __builtin_prefetch(codes + ahead);
        __builtin_prefetch(codes + ahead + 64);
      }
#pragma GCC unroll 8
      for (int n = 0; n < 8; n++) {
        vf w0 = nth(table, v0, n / 2 + n % 2 * 4), w1 = nth(table, v1, n / 2 + n % 2 * 4);
        if (asymmetric) w0 -= zero[0], w1 -= zero[1];
        *(vf *)(to + n * 2 * VL) = w0;
        *(vf *)(to + n * 2 * VL + VL) = w1;
      }
    }
  } else
    for (int64_t i = 0; i < k; i++, codes += BLOCK, to += 2 * VL) {
      if (ahead && i % 2 == 0) __builtin_prefetch(codes + ahead);
      vf w0 = byte_value(codes, format), w1 = byte_value(codes + VL, format);
      if (asymmetric) w0 -= zero[0], w1 -= zero[1];
      *(vf *)to = w0;
      *(vf *)(to + VL) = w1;
    }
}

#define FUSED_CASE(m) \
  case m: fused(m, format, asymmetric, q, xr, xs, codes, n, zero, scale, to, pass || !first ? 0 : 4096); break;
#define STEP_CASE(m) \
  case m: widened(m, xr, xs, values, n, scale, to); break;

INLINE void product_coded(const int format, const int asymmetric, const struct moe_coded *q, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  float values[STRETCH * 2 * VL] __attribute__((aligned(64)));
  const int64_t code_bytes = format == CODE_4 ? BLOCK / 2 : BLOCK;
  for (int64_t i = 0; i < rows * BLOCK; i += VL) *(vf *)(c + i) = (vf){};
  int64_t group = 0, left = q->group;
  for (int64_t k0 = 0; k0 < k;) {
    int64_t n = least(least(q->stretch, k - k0), left);
    for (int step = 0; step < STEPS; step++) {
      const int64_t lane = step * 2 * VL;
      const char *codes = w + k0 * code_bytes + lane * (format == CODE_4 ? 4 : 1);
      vf scale[2] = {scales_at(q, w, group, lane), scales_at(q, w, group, lane + VL)}, zero[2] = {{}, {}};
      if (asymmetric) zero[0] = zeros_at(q, w, group, lane), zero[1] = zeros_at(q, w, group, lane + VL);
      float *to = c + lane;
      const char *xr = x + k0 * 4;
      const int fuse = rows <= FUSED || again(format);
      if (!fuse) widen_stretch(format, asymmetric, q, codes, n, zero, values, first ? 4096 : 0);
      int64_t most = fuse ? FUSED : STEP, passes = (rows + most - 1) / most, rest = rows;
      for (int64_t pass = 0, m; pass < passes; pass++, rest -= m, xr += m * xs, to += m * BLOCK) {
        m = (rest + passes - pass - 1) / (passes - pass);
        if (fuse) switch (m) { FUSED_CASES }
        else switch (m) { STEP_CASES }
      }
    }
    k0 += n;
    left -= n;
    if (left == 0) {
      group++;
      left = q->group;
    }
  }
}

static void NAME(coded)(const struct moe_coded *q, int64_t expert, const char *x, int64_t xs, int64_t rows, const char *w, int64_t k, float *c, int first) {
  switch (q->format * 2 + (q->zeros != 0)) {
    case CODE_4 * 2: product_coded(CODE_4, 0, q, x, xs, rows, w, k, c, first); break;
    case CODE_4 * 2 + 1: product_coded(CODE_4, 1, q, x, xs, rows, w, k, c, first); break;
    case CODE_I8 * 2: product_coded(CODE_I8, 0, q, x, xs, rows, w, k, c, first); break;
    case CODE_I8 * 2 + 1: product_coded(CODE_I8, 1, q, x, xs, rows, w, k, c, first); break;
    default: product_coded(CODE_E4M3, 0, q, x, xs, rows, w, k, c, first); break;
  }
  const float *factor = q->factors + expert * 2;
  for (int64_t r = 0; r < rows; r++, c += BLOCK)
    for (int64_t i = 0; i < BLOCK; i += VL) *(vf *)(c + i) *= factor[i / HALF];
}

// There is nothing to set up.
static void NAME(begin)(const struct moe_coded *q, int64_t k, int64_t rows, int int8) { (void)q, (void)k, (void)rows, (void)int8; }
static void NAME(done)(void) {}
