// From a row of logits to experts and weights, as io.moe4j.backend.cpu.Router: scores in f32 (exponentials and sums in double, rounded once), ties by
// ascending id, NaN last. Included behind rows.h. A token's bits depend on nothing but its logits.
typedef double vd __attribute__((vector_size(VL * 4), aligned(8), may_alias));
typedef int64_t vl __attribute__((vector_size(VL * 4), aligned(8), may_alias));
typedef float hf __attribute__((vector_size(VL * 2), aligned(4), may_alias));
enum { LANES = VL / 2 };  // doubles in a vector

INLINE vd choose_d(vl mask, vd yes, vd no) { return (vd)(((vl)yes & mask) | ((vl)no & ~mask)); }

#ifdef __AVX512F__
INLINE vd sqrt_d(vd v) { return (vd)_mm512_sqrt_pd((__m512d)v); }
#elif defined(__AVX__)
INLINE vd sqrt_d(vd v) { return (vd)_mm256_sqrt_pd((__m256d)v); }
#else
INLINE vd sqrt_d(vd v) { return (vd)vsqrtq_f64((float64x2_t)v); }
#endif

// e^v, relative error at most 2 ulp; v is clamped to -708..709, NaN stays NaN. Cody and Waite's range reduction, then the Taylor polynomial of degree 13.
INLINE vd exp_d(vd x) {
  vd v = choose_d(x < -708.0, (vd){} - 708.0, choose_d(x > 709.0, (vd){} + 709.0, x));
  vd shifted = v * 1.4426950408889634 + 0x1.8p52, n = shifted - 0x1.8p52;
  vd r = v - n * 0x1.62e42fee00000p-1;
  r = r - n * 0x1.a39ef35793c76p-33;
  static const double c[] = {1 / 6227020800.0, 1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0, 1 / 720.0, 1 / 120.0, 1 / 24.0, 1 / 6.0, 0.5, 1, 1};
  vd p = (vd){} + c[0];
  for (int i = 1; i < 14; i++) p = p * r + c[i];
  return choose_d(x != x, x, (vd)((vl)p + ((vl)shifted << 52)));
}

// log(1 + u) for u in 0..1: 2 artanh(u / (2 + u)), whose series ends below 2^-56.
INLINE vd log1p_d(vd u) {
  vd s = u / (u + 2.0), q = s * s, p = (vd){} + 1 / 35.0;
  for (int n = 33; n > 0; n -= 2) p = p * q + 1.0 / n;
  return s * p * 2.0;
}

// The scores of n logits, with zeros up to a whole vector.
INLINE void scores_of(const int scoring, const float *z, int64_t n, float *out) {
  double e[ROUTE_EXPERTS + VL] __attribute__((aligned(64)));
  const int64_t padded = (n + VL - 1) / VL * VL;
  float most = -__builtin_inff();
  double sum = 0;
  if (scoring == SCORE_SOFTMAX) {
    vf m = splat(most);
    int64_t i = 0;
    for (; i + VL <= n; i += VL) m = choose(*(const vf *)(z + i) > m, *(const vf *)(z + i), m);
    for (int j = 0; j < VL; j++) most = m[j] > most ? m[j] : most;
    for (; i < n; i++) most = z[i] > most ? z[i] : most;
    vd s = {};
    for (i = 0; i + LANES <= n; i += LANES) {
      vd v = exp_d(__builtin_convertvector(*(const hf *)(z + i), vd) - (double)most);
      *(vd *)(e + i) = v;
      s += v;
    }
    if (i < n) {
      vd v = {};
      for (int j = 0; j < LANES; j++) v[j] = i + j < n ? (double)z[i + j] - (double)most : 0;
      v = exp_d(v);
      *(vd *)(e + i) = v;
      for (int j = 0; j < n - i; j++) s[j] += v[j];
    }
    for (int j = 0; j < LANES; j++) sum += s[j];
  }
  for (int64_t i = 0; i < padded; i += LANES) {
    vd v = {}, y;
    if (i + LANES <= n) v = __builtin_convertvector(*(const hf *)(z + i), vd);
    else for (int j = 0; j < LANES; j++) v[j] = i + j < n ? (double)z[i + j] : 0;
    if (scoring == SCORE_SOFTMAX) {
      if (i < n) v = *(vd *)(e + i);
      y = v / sum;
    } else if (scoring == SCORE_SIGMOID) y = 1.0 / (exp_d(-v) + 1.0);
    else {
      vd u = choose_d(v > 0.0, v, -v), positive = choose_d(v < 0.0, (vd){}, v);
      y = sqrt_d(positive + log1p_d(exp_d(-u)));
    }
    hf f = __builtin_convertvector(y, hf);
    for (int j = 0; j < LANES; j++) out[i + j] = i + j < n ? f[j] : 0;
  }
}

// Whole numbers in the order of floats: equal for equal ones, NaN before all others, CLOSED before that.
#define CLOSED INT32_MIN
INLINE vi keys_of(vf v) {
  v = v + 0.0f;  // one zero
  vi b = (vi)v, key = b ^ ((b >> 31) & 0x7fffffff);
  vi nan = (vi)(v != v);
  return (key & ~nan) | ((CLOSED + 1) & nan);
}

// The first of the largest.
INLINE int64_t largest(const int32_t *keys, int64_t padded) {
  vi best = (vi){} + CLOSED, at = {}, lane;
  for (int j = 0; j < VL; j++) lane[j] = j;
  for (int64_t i = 0; i < padded; i += VL, lane += VL) {
    vi k = *(const vi *)(keys + i), more = k > best;
    best = (k & more) | (best & ~more);
    at = (lane & more) | (at & ~more);
  }
  int32_t most = best[0], first = at[0];
  for (int j = 1; j < VL; j++)
    if (best[j] > most || (best[j] == most && at[j] < first)) most = best[j], first = at[j];
  return first;
}

// Closes all groups but the best ones.
INLINE void keep_groups(const struct moe_route *r, const float *choice, int32_t *keys) {
  float scores[ROUTE_EXPERTS];
  char taken[ROUTE_EXPERTS];
  const int64_t size = r->experts / r->groups;
  for (int64_t g = 0; g < r->groups; g++) {
    float first = -__builtin_inff(), second = first;
    for (int64_t e = g * size; e < (g + 1) * size; e++) {
      float v = choice[e];
      if (v > first) second = first, first = v;
      else if (v > second) second = v;
    }
    scores[g] = r->two ? first + second : first;
    taken[g] = 0;
  }
  for (int64_t n = 0; n < r->top_groups; n++) {
    int64_t best = -1;
    for (int64_t g = 0; g < r->groups; g++)
      if (!taken[g] && (best < 0 || scores[g] > scores[best])) best = g;
    taken[best] = 1;
  }
  for (int64_t e = 0; e < r->groups * size; e++)
    if (!taken[e / size]) keys[e] = CLOSED;
}

static void NAME(route)(const struct moe_route *r, const float *logits, const float *bias, const float *scale, int32_t *ids, float *weights, int64_t from, int64_t to) {
  float scores[ROUTE_EXPERTS + VL] __attribute__((aligned(64))), chosen[ROUTE_EXPERTS + VL] __attribute__((aligned(64)));
  int32_t keys[ROUTE_EXPERTS + VL] __attribute__((aligned(64)));
  const int64_t n = r->experts, k = r->top_k, padded = (n + VL - 1) / VL * VL;
  for (int64_t t = from; t < to; t++) {
    const float *z = logits + t * n;
    int32_t *id = ids + t * k;
    float *w = weights + t * k;
    switch (r->scoring) {
      case SCORE_SOFTMAX: scores_of(SCORE_SOFTMAX, z, n, scores); break;
      case SCORE_SIGMOID: scores_of(SCORE_SIGMOID, z, n, scores); break;
      case SCORE_SQRT_SOFTPLUS: scores_of(SCORE_SQRT_SOFTPLUS, z, n, scores); break;
      default: for (int64_t e = 0; e < padded; e++) scores[e] = e < n ? z[e] : 0;
    }
    for (int64_t e = 0; e < padded; e++) chosen[e] = bias && e < n ? scores[e] + bias[e] : scores[e];
    for (int64_t e = 0; e < padded; e += VL) *(vi *)(keys + e) = keys_of(*(const vf *)(chosen + e));
    for (int64_t e = n; e < padded; e++) keys[e] = CLOSED;
    if (r->groups > 1) keep_groups(r, chosen, keys);
    for (int64_t i = 0; i < k; i++) {
      int64_t best = largest(keys, padded);
      keys[best] = CLOSED;
      id[i] = (int32_t)best;
      chosen[i] = scores[best];
    }
    if (r->scoring == SCORE_SOFTMAX_TOPK) scores_of(SCORE_SOFTMAX, chosen, k, scores);
    else __builtin_memcpy(scores, chosen, k * sizeof *scores);
    if (r->renormalize) {
      double sum = 0;
      for (int64_t i = 0; i < k; i++) sum += scores[i];
      sum += r->epsilon;
      if (sum < r->sum_floor) sum = r->sum_floor;
      for (int64_t i = 0; i < k; i++) scores[i] = (float)(scores[i] / sum);
    }
    for (int64_t i = 0; i < k; i++) w[i] = scores[i] * r->scaling * (scale ? scale[id[i]] : 1.0f);
  }
}
#undef CLOSED
