// What stands around the experts. Included behind rows.h.
//
// The product of rows as they come with weights as they lie: router, latent projections, a shared expert's gate.
// Order of sums, whatever the number of tokens, outputs of a call or threads: lane l of one vector sums k = l, l + VL, ... upwards by fused multiply-adds
// (with bf16 on both sides k = 2 l, then 2 l + 1, of each 2 VL), zeros behind a row's end; then lane i takes lane i + n for n = VL / 2 down to 1; then the bias.

// Sums at once: DENSE_ROWS x DENSE_OUTS vectors, beside those of x and one of weights.
enum { DENSE_ROWS = VL == 8 ? 2 : 4, DENSE_OUTS = 4 };

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef float eight __attribute__((vector_size(32), aligned(4), may_alias));

// The sum of each of four vectors.
INLINE four sums_of(const vf *v) {
  four s[4];
  for (int j = 0; j < 4; j++) {
#if VL == 16
    eight h = __builtin_shufflevector(v[j], v[j], 0, 1, 2, 3, 4, 5, 6, 7) + __builtin_shufflevector(v[j], v[j], 8, 9, 10, 11, 12, 13, 14, 15);
#elif VL == 8
    eight h = v[j];
#endif
#if VL == 4
    s[j] = v[j];
#else
    s[j] = __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
#endif
  }
  four a = __builtin_shufflevector(s[0], s[1], 0, 1, 4, 5) + __builtin_shufflevector(s[0], s[1], 2, 3, 6, 7);
  four b = __builtin_shufflevector(s[2], s[3], 0, 1, 4, 5) + __builtin_shufflevector(s[2], s[3], 2, 3, 6, 7);
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

// Pairs of bf16, the first of each in the low half of a word.
INLINE void add_pairs(const int m, vu w, const vu *v, vf sum[DENSE_ROWS][DENSE_OUTS], const int j) {
  for (int r = 0; r < m; r++) {
    sum[r][j] += (vf)(w << 16) * (vf)(v[r] << 16);
    sum[r][j] += (vf)(w & 0xffff0000u) * (vf)(v[r] & 0xffff0000u);
  }
}

INLINE vu part_u32(const char *p, int64_t n) {
  vu v = {};
  for (int64_t i = 0; i < n && i < 2 * VL; i++) v[i / 2] |= (uint32_t)((const uint16_t *)p)[i] << i % 2 * 16;
  return v;
}

// m rows of x by DENSE_OUTS rows of weights.
INLINE void dense_sums(const int m, const char *const *x, const int x_type, const char *const *w, const int w_type, int64_t in, vf sum[DENSE_ROWS][DENSE_OUTS]) {
  const int64_t xs = size_of(x_type), ws = size_of(w_type);
  int64_t i = 0;
  for (int r = 0; r < m; r++)
    for (int j = 0; j < DENSE_OUTS; j++) sum[r][j] = (vf){};
  if (x_type == TYPE_BF16 && w_type == TYPE_BF16) {
    for (; i + 2 * VL <= in; i += 2 * VL) {
      vu v[DENSE_ROWS];
      for (int r = 0; r < m; r++) v[r] = *(const vu *)(x[r] + i * 2);
      for (int j = 0; j < DENSE_OUTS; j++) add_pairs(m, *(const vu *)(w[j] + i * 2), v, sum, j);
    }
    if (i < in) {
      vu v[DENSE_ROWS];
      for (int r = 0; r < m; r++) v[r] = part_u32(x[r] + i * 2, in - i);
      for (int j = 0; j < DENSE_OUTS; j++) add_pairs(m, part_u32(w[j] + i * 2, in - i), v, sum, j);
    }
    return;
  }
  for (; i + VL <= in; i += VL) {
    vf v[DENSE_ROWS];
    for (int r = 0; r < m; r++) v[r] = widen(x[r] + i * xs, x_type);
    for (int j = 0; j < DENSE_OUTS; j++) {
      vf p = widen(w[j] + i * ws, w_type);
      for (int r = 0; r < m; r++) sum[r][j] += p * v[r];
    }
  }
  if (i < in) {
    vf v[DENSE_ROWS];
    for (int r = 0; r < m; r++) v[r] = widen_part(x[r] + i * xs, xs, in - i, x_type);
    for (int j = 0; j < DENSE_OUTS; j++) {
      vf p = widen_part(w[j] + i * ws, ws, in - i, w_type);
      for (int r = 0; r < m; r++) sum[r][j] += p * v[r];
    }
  }
}

INLINE void dense_typed(const struct moe_dense *d, const char *x, const int x_type, const char *w, const int w_type, const float *bias, char *y) {
  const int64_t x_stride = d->in * size_of(x_type);
  for (int64_t o = d->out; o < d->out + d->outs; o += DENSE_OUTS) {
    const int64_t n = least(DENSE_OUTS, d->out + d->outs - o);
    // The last rows are read twice rather than asked for each time.
    const char *wj[DENSE_OUTS];
    for (int j = 0; j < DENSE_OUTS; j++) wj[j] = w + (o + least(j, n - 1)) * d->w_stride;
    for (int64_t t = d->from, m; t < d->to; t += m) {
      const char *xr[DENSE_ROWS];
      vf sum[DENSE_ROWS][DENSE_OUTS];
      m = least(DENSE_ROWS, d->to - t);
      for (int r = 0; r < DENSE_ROWS; r++) xr[r] = x + (t + least(r, m - 1)) * x_stride;
      if (m == 1) dense_sums(1, xr, x_type, wj, w_type, d->in, sum);
      else dense_sums(DENSE_ROWS, xr, x_type, wj, w_type, d->in, sum);
      for (int r = 0; r < m; r++) {
        four s = sums_of(sum[r]);
        float *to = (float *)(y + (t + r) * d->y_stride) + o;
        if (bias) for (int j = 0; j < n; j++) s[j] += bias[o + j];
        for (int j = 0; j < n; j++) to[j] = s[j];
      }
    }
  }
}

static void NAME(dense)(const struct moe_dense *d, const char *x, const char *w, const float *bias, char *y) {
  switch (d->w_type * TYPES + d->x_type) {
    case TYPE_F32 * TYPES + TYPE_F32: dense_typed(d, x, TYPE_F32, w, TYPE_F32, bias, y); break;
    case TYPE_F32 * TYPES + TYPE_BF16: dense_typed(d, x, TYPE_BF16, w, TYPE_F32, bias, y); break;
    case TYPE_F32 * TYPES + TYPE_F16: dense_typed(d, x, TYPE_F16, w, TYPE_F32, bias, y); break;
    case TYPE_BF16 * TYPES + TYPE_F32: dense_typed(d, x, TYPE_F32, w, TYPE_BF16, bias, y); break;
    case TYPE_BF16 * TYPES + TYPE_BF16: dense_typed(d, x, TYPE_BF16, w, TYPE_BF16, bias, y); break;
    case TYPE_BF16 * TYPES + TYPE_F16: dense_typed(d, x, TYPE_F16, w, TYPE_BF16, bias, y); break;
    case TYPE_F16 * TYPES + TYPE_F32: dense_typed(d, x, TYPE_F32, w, TYPE_F16, bias, y); break;
    case TYPE_F16 * TYPES + TYPE_BF16: dense_typed(d, x, TYPE_BF16, w, TYPE_F16, bias, y); break;
    default: dense_typed(d, x, TYPE_F16, w, TYPE_F16, bias, y); break;
  }
}

INLINE void finish_rows(const struct moe_finish *f, const float *routed, const float *shared, const float *factor, const float *bias, char *out, const int32_t type) {
  for (int64_t t = f->from; t < f->to; t++)
    for (int64_t i = t * f->hidden, j = 0; j < f->hidden; i += VL, j += VL) {
      const int64_t n = f->hidden - j;
      vf v = n >= VL ? *(const vf *)(routed + i) : widen_part((const char *)(routed + i), 4, n, TYPE_F32);
      if (shared) v += (n >= VL ? *(const vf *)(shared + i) : widen_part((const char *)(shared + i), 4, n, TYPE_F32)) * (factor ? factor[t] : 1.0f);
      if (f->half) v *= 0.5f;
      if (bias) v += n >= VL ? *(const vf *)(bias + j) : widen_part((const char *)(bias + j), 4, n, TYPE_F32);
      store_part(out + i * size_of(type), v, n, type);
    }
}

static void NAME(finish)(const struct moe_finish *f, const float *routed, const float *shared, const float *factor, const float *bias, char *out) {
  switch (f->type) {
    case TYPE_F32: finish_rows(f, routed, shared, factor, bias, out, TYPE_F32); break;
    case TYPE_BF16: finish_rows(f, routed, shared, factor, bias, out, TYPE_BF16); break;
    default: finish_rows(f, routed, shared, factor, bias, out, TYPE_F16); break;
  }
}
