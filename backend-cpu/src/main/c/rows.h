// Everything but the products: the same text for every width of vectors. Whoever includes it defines VL (floats in a vector), NAME(x) and
// `widen_f16`. Vectors are the compiler's own; multiplications and additions are contracted.
#include "vectors.h"

#ifndef AT_ONCE
#define AT_ONCE PRODUCT_ROWS  // rows of a product
#endif

INLINE vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }
// a, if that is NaN.
#ifdef __AVX512F__
INLINE vf max_of(vf a, vf b) { return (vf)_mm512_max_ps((__m512)b, (__m512)a); }
INLINE vf min_of(vf a, vf b) { return (vf)_mm512_min_ps((__m512)b, (__m512)a); }
#elif defined(__AVX__)
INLINE vf max_of(vf a, vf b) { return (vf)_mm256_max_ps((__m256)b, (__m256)a); }
INLINE vf min_of(vf a, vf b) { return (vf)_mm256_min_ps((__m256)b, (__m256)a); }
#else
INLINE vf max_of(vf a, vf b) { return choose(a < b, b, a); }
INLINE vf min_of(vf a, vf b) { return choose(a > b, b, a); }
#endif

INLINE int64_t size_of(int32_t type) { return type == TYPE_F32 ? 4 : 2; }

INLINE vf widen(const char *p, int32_t type) {
  return type == TYPE_F32 ? *(const vf *)p : type == TYPE_BF16 ? widen_bf16(*(const vh *)p) : widen_f16(*(const vh *)p);
}

// The first n elements, then zeros; elements may be apart.
INLINE vf widen_part(const char *p, int64_t step, int64_t n, int32_t type) {
  if (type == TYPE_F32) {
    vf v = {};
    for (int64_t i = 0; i < n && i < VL; i++) v[i] = *(const float *)(p + i * step);
    return v;
  }
  vh h = {};
  for (int64_t i = 0; i < n && i < VL; i++) h[i] = *(const uint16_t *)(p + i * step);
  return type == TYPE_BF16 ? widen_bf16(h) : widen_f16(h);
}

// To nearest even; NaN stays NaN.
INLINE vh to_bf16(vf v) {
#ifdef __AVX512BF16__
  return (vh)_mm512_cvtneps_pbh((__m512)v);  // and denormal numbers become zeros, as the units that multiply bf16 take them
#endif
  vu u = (vu)v, quiet = (u >> 16) | 64;
  vu r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  vu nan = (vu)(v != v);
  return __builtin_convertvector((quiet & nan) | (r & ~nan), vh);
}

static vh to_f16(vf v);

INLINE void store(char *p, vf v, int32_t type) {
  if (type == TYPE_F32) *(vf *)p = v;
  else *(vh *)p = type == TYPE_BF16 ? to_bf16(v) : to_f16(v);
}

INLINE void store_part(char *p, vf v, int64_t n, int32_t type) {
  if (n >= VL) store(p, v, type);
  else if (type == TYPE_F32) for (int64_t i = 0; i < n; i++) ((float *)p)[i] = v[i];
  else {
    vh h = type == TYPE_BF16 ? to_bf16(v) : to_f16(v);
    for (int64_t i = 0; i < n; i++) ((uint16_t *)p)[i] = h[i];
  }
}

// e^v, relative error at most 2 ulp in the normal range; v is clamped to -87..88, NaN stays NaN. Cody and Waite's range reduction, then the
// Taylor polynomial of degree 7.
INLINE vf exp_of(vf v) {
  v = min_of(max_of(v, splat(-87)), splat(88));
  vf shifted = v * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  vf r = v - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1 / 5040.0f);
  p = p * r + 1 / 720.0f;
  p = p * r + 1 / 120.0f;
  p = p * r + 1 / 24.0f;
  p = p * r + 1 / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (vf)((vi)p + ((vi)shifted << 23));
}

INLINE vf silu_of(vf v) { return v / (exp_of(-v) + 1.0f); }
INLINE vf clip(vf v, float limit) { return max_of(min_of(v, splat(limit)), splat(-limit)); }

// 0.5 v (1 + tanh z) = v / (1 + e^(-2 z))
INLINE vf gelu_tanh_of(vf v) { return v / (exp_of((v * v * 0.044715f + 1.0f) * v * -1.5957691216057308f) + 1.0f); }

// 0.5 v erfc(-v / sqrt 2), erfc by the Chebyshev fit of Numerical Recipes (2nd ed., 6.2), relative error below 1.2e-7.
INLINE vf gelu_of(vf v) {
  vf x = v * -0.70710678f, z = max_of(x, -x), t = 1.0f / (z * 0.5f + 1.0f);
  vf p = splat(0.17087277f);
  p = p * t - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  vf r = t * exp_of(p - z * z);
  return v * 0.5f * choose(x < 0, 2.0f - r, r);
}

INLINE vf activate(int64_t kind, vf g, vf u, float alpha, float beta, float limit) {
  switch (kind) {
    case SILU: return silu_of(min_of(g, splat(limit))) * clip(u, limit);
    case GELU: return gelu_of(g) * u;
    case GELU_TANH: return gelu_tanh_of(g) * u;
    case SWIGLUOAI: g = min_of(g, splat(limit)); return g / (exp_of(g * -alpha) + 1.0f) * (clip(u, limit) + beta);
    case SWIGLU_STEP: return min_of(silu_of(g), splat(limit)) * clip(u, limit);
    case SILU_NO_MUL: return silu_of(u);
    case GELU_NO_MUL: return gelu_of(u);
    case GELU_TANH_NO_MUL: return gelu_tanh_of(u);
    default: u = max_of(u, splat(0)); return u * u;
  }
}

INLINE int is_gated(int64_t kind) { return kind < SILU_NO_MUL; }

// Rows of the first n outputs of c [rows][32] become activations; zeros from n on.
INLINE void activate_rows(const struct moe_call *c, int64_t kind, const float *v, char *to, int64_t rows, int64_t n) {
  int64_t width = is_gated(kind) ? HALF : BLOCK, size = size_of(c->row_type);
  for (int64_t r = 0; r < rows; r++, v += BLOCK, to += c->act_stride)
    for (int64_t i = 0; i < width; i += VL) {
      vf g = is_gated(kind) ? *(const vf *)(v + i) : splat(0), u = *(const vf *)(v + i + (is_gated(kind) ? HALF : 0));
      vf a = activate(kind, g, u, c->alpha, c->beta, c->limit);
      for (int64_t j = n - i > 0 ? n - i : 0; j < VL; j++) a[j] = 0;
      store(to + i * size, a, c->row_type);
    }
}


#include "lora.h"

INLINE void add_bias(const float *b, float *c, int64_t rows) {
  for (int64_t r = 0; r < rows; r++, c += BLOCK)
    for (int64_t i = 0; i < BLOCK; i += VL) *(vf *)(c + i) += *(const vf *)(b + i);
}

// The part of a task that one product takes.
INLINE struct moe_task part_of(const struct moe_task *t, int64_t done) {
  struct moe_task p = *t;
  p.row += done;
  p.rows = least(AT_ONCE, t->rows - done);
  return p;
}

// Rows as products read them: int8, or of the call's row type.
INLINE coded_fn *coded_of(const struct kernels *own, const struct moe_call *c, int int8) { return int8 ? own->coded8 : own->coded[c->row_type]; }

static void NAME(w13)(const struct moe_call *c, const struct moe_task *t) {
  float v[AT_ONCE * BLOCK] __attribute__((aligned(64)));
  char staged[STAGE_BYTES] __attribute__((aligned(64)));
  const struct kernels *own = kernels_of(c->isa);
  const int int8 = c->int8 & 1;
  product_fn *product = c->type13 == TYPE_CODED ? 0 : own->product[c->row_type][c->type13];
  coded_fn *coded = coded_of(own, c, int8);
  if (int8 || c->row_type == TYPE_BF16) own->begin(product ? 0 : c->coded13, c->hidden_padded, t->rows, int8);
  int gated = is_gated(c->activation);
  int64_t width = gated ? HALF : BLOCK, size = size_of(c->row_type);
  struct lora lora = lora_of(c, t, gated ? GATE : UP, UP, width, c->intermediate);
  for (int64_t b = 0; b < t->blocks; b++) {
    int64_t block = t->block + b, out = block * width, n = least(width, c->intermediate - out);
    if (lora.blocks && b % lora.blocks == 0) stage(&lora, out, least(lora.blocks, t->blocks - b), staged);
    if (lora.blocks) fetch_ahead(&lora, b);
    for (int64_t done = 0; done < t->rows; done += AT_ONCE) {
      struct moe_task p = part_of(t, done);
      const char *x = c->x13 + p.row * c->x13_stride, *w = c->w13 + t->expert * c->w13_expert + block * c->w13_block;
      const int first = done ? 0 : b ? 1 : 2;
      if (product) product(x, c->x13_stride, p.rows, w, c->hidden_padded, v, first);
      else coded(c->coded13, t->expert, x, c->x13_stride, p.rows, w, c->hidden_padded, v, first);
      if (c->b13) add_bias(c->b13 + (t->expert * (c->intermediate_padded / width) + block) * BLOCK, v, p.rows);
      if (lora.block_bytes && n > 0) expand_rows(&lora, &p, out, staged + (lora.blocks ? b % lora.blocks * lora.block_bytes : 0), staged, v);
      char *to = c->act + p.row * c->act_stride + out * size;
      switch (c->activation) {
#define CASE(k) case k: activate_rows(c, k, v, to, p.rows, n); break;
        CASE(SILU) CASE(GELU) CASE(GELU_TANH) CASE(SWIGLUOAI) CASE(SWIGLU_STEP) CASE(SILU_NO_MUL) CASE(GELU_NO_MUL) CASE(GELU_TANH_NO_MUL)
        CASE(RELU2_NO_MUL)
#undef CASE
      }
    }
  }
  own->done();
}

static void NAME(w2)(const struct moe_call *c, const struct moe_task *t) {
  float v[AT_ONCE * BLOCK] __attribute__((aligned(64)));
  char staged[STAGE_BYTES] __attribute__((aligned(64)));
  const struct kernels *own = kernels_of(c->isa);
  const int int8 = c->int8 >> 1 & 1;
  product_fn *product = c->type2 == TYPE_CODED ? 0 : own->product[c->row_type][c->type2];
  coded_fn *coded = coded_of(own, c, int8);
  if (int8 || c->row_type == TYPE_BF16) own->begin(product ? 0 : c->coded2, c->intermediate_padded, t->rows, int8);
  struct lora lora = lora_of(c, t, DOWN, DOWN, BLOCK, c->hidden);
  for (int64_t b = 0; b < t->blocks; b++) {
    int64_t block = t->block + b, out = block * BLOCK;
    if (lora.blocks && b % lora.blocks == 0) stage(&lora, out, least(lora.blocks, t->blocks - b), staged);
    if (lora.blocks) fetch_ahead(&lora, b);
    for (int64_t done = 0; done < t->rows; done += AT_ONCE) {
      struct moe_task p = part_of(t, done);
      const char *x = c->act2 + p.row * c->act2_stride, *w = c->w2 + t->expert * c->w2_expert + block * c->w2_block;
      const int first = done ? 0 : b ? 1 : 2;
      if (product) product(x, c->act2_stride, p.rows, w, c->intermediate_padded, v, first);
      else coded(c->coded2, t->expert, x, c->act2_stride, p.rows, w, c->intermediate_padded, v, first);
      if (c->b2) add_bias(c->b2 + t->expert * c->hidden_padded + out, v, p.rows);
      if (lora.block_bytes) expand_rows(&lora, &p, out, staged + (lora.blocks ? b % lora.blocks * lora.block_bytes : 0), staged, v);
      char *to = c->y + p.row * c->y_stride + out * 4;
      for (int64_t r = 0; r < p.rows; r++, to += c->y_stride)
        for (int64_t i = 0; i < BLOCK; i += VL) {
#ifdef LORA_TILES
          // Nobody reads it before it has left the cache; so the line is not fetched, either.
          if (t->rows > 32 && (uintptr_t)to % 64 == 0) _mm512_stream_ps((float *)to + i, (__m512)*(vf *)(v + r * BLOCK + i));
          else
#endif
          ((vf *)to)[i / VL] = *(vf *)(v + r * BLOCK + i);
        }
    }
  }
#ifdef LORA_TILES
  _mm_sfence();
#endif
  own->done();
}

INLINE void gather_row(const char *from, int32_t type, float weight, char *to, int32_t row_type, int64_t n, int64_t padded) {
  int64_t size = size_of(type), row_size = size_of(row_type);
  int64_t i = 0;
  for (; i + VL <= n; i += VL) {
    if (type == TYPE_BF16 && row_type == TYPE_BF16) *(vh *)(to + i * 2) = *(const vh *)(from + i * 2);
    else store(to + i * row_size, widen(from + i * size, type) * weight, row_type);
  }
  for (; i < padded; i += VL) {
    vf v = widen_part(from + i * size, size, n - i, type);
    store(to + i * row_size, v * weight, row_type);
  }
}

// Rows of positions from..to-1; with weights (by pair) they are scaled.
static void NAME(gather)(const struct moe_call *c, const char *hidden, int32_t type, const float *weight, int64_t first_token, int64_t from, int64_t to) {
  for (int64_t p = from; p < to; p++) {
    int64_t pair = c->pair[p], token = first_token + pair / c->top_k;
    const char *row = hidden + token * c->hidden * size_of(type);
    float w = weight ? weight[first_token * c->top_k + pair] : 1;
    char *x = c->x + p * c->x_stride;
    switch (type * 2 + (c->row_type == TYPE_BF16)) {
      case TYPE_F32 * 2: gather_row(row, TYPE_F32, w, x, TYPE_F32, c->hidden, c->hidden_padded); break;
      case TYPE_BF16 * 2: gather_row(row, TYPE_BF16, w, x, TYPE_F32, c->hidden, c->hidden_padded); break;
      case TYPE_F16 * 2: gather_row(row, TYPE_F16, w, x, TYPE_F32, c->hidden, c->hidden_padded); break;
      case TYPE_F32 * 2 + 1: gather_row(row, TYPE_F32, w, x, TYPE_BF16, c->hidden, c->hidden_padded); break;
      case TYPE_BF16 * 2 + 1: gather_row(row, TYPE_BF16, w, x, TYPE_BF16, c->hidden, c->hidden_padded); break;
      default: gather_row(row, TYPE_F16, w, x, TYPE_BF16, c->hidden, c->hidden_padded); break;
    }
  }
}

INLINE void combine_row(const struct moe_call *c, const float *weight, int64_t pair0, char *to, int32_t type) {
  for (int64_t i = 0; i < c->hidden; i += VL) {
    vf sum = {};
    for (int64_t k = 0; k < c->top_k; k++) {
      int64_t p = c->position[pair0 + k];
      if (p >= 0) sum += *(const vf *)(c->y + p * c->y_stride + i * 4) * (weight ? weight[k] : 1.0f);
    }
    store_part(to + i * size_of(type), sum, c->hidden - i, type);
  }
}

// Tokens from..to-1 of the chunk, weighted sums over k in order of k; weight by pair of the whole batch, null = 1.
static void NAME(combine)(const struct moe_call *c, const float *weight, int64_t first_token, int64_t from, int64_t to, char *out, int32_t type) {
  for (int64_t t = from; t < to; t++) {
    const float *w = weight ? weight + (first_token + t) * c->top_k : 0;
    char *row = out + (first_token + t) * c->hidden * size_of(type);
    switch (type) {
      case TYPE_F32: combine_row(c, w, t * c->top_k, row, TYPE_F32); break;
      case TYPE_BF16: combine_row(c, w, t * c->top_k, row, TYPE_BF16); break;
      default: combine_row(c, w, t * c->top_k, row, TYPE_F16); break;
    }
  }
}

typedef int8_t vb __attribute__((vector_size(VL), aligned(1), may_alias));

INLINE vf ordered(const float *x, const int32_t *order, int64_t i) {
  if (!order) return *(const vf *)(x + i);
  vf v;
  for (int j = 0; j < VL; j++) v[j] = x[order[i + j]];
  return v;
}

// A row of int8, of a scale of its own: the largest magnitude becomes 127. With a number that is none, or no finite one, all that comes of it is NaN.
INLINE void quantise_row(const struct moe_coded *q, const float *x, const int32_t *order, int64_t k, char *to) {
  vf most = {}, none = {};
  for (int64_t i = 0; i < k; i += VL) {
    vf v = *(const vf *)(x + i);
    most = max_of(most, max_of(v, -v));
    none += v * 0.0f;
  }
  float largest = 0, bad = 0;
  for (int j = 0; j < VL; j++) {
    largest = most[j] > largest ? most[j] : largest;
    bad += none[j];
  }
  const float scale = largest / 127;
#if VL >= 8
  vb eights;
  for (int j = 0; j < VL; j++) eights[j] = (int8_t)(j / 8 * 8 + (0x73625140 >> j % 8 * 4 & 15));
#endif
  for (int64_t i = 0; i < k; i += VL) {
    vf v = {};
    if (scale > 0 && bad == 0) v = ordered(x, order, i) / scale;
    vb b = __builtin_convertvector((vi)(v + 12582912.0f) - 0x4b400000, vb);  // to nearest even
#if VL >= 8
    if (q->format == CODE_4) b = __builtin_shuffle(b, eights);
#endif
    *(vb *)(to + i) = b;
  }
#if VL < 8
  if (q->format == CODE_4)
    for (int64_t i = 0; i < k; i += 8) {
      uint64_t from, eight = 0;
      __builtin_memcpy(&from, to + i, 8);
      for (int j = 0; j < 8; j++) eight |= (from >> (0x73625140 >> j * 4 & 15) * 8 & 255) << j * 8;
      __builtin_memcpy(to + i, &eight, 8);
    }
#endif
  const int64_t run = run_of(q), runs = (k + run - 1) / run;
  int32_t *sums = (int32_t *)(to + k);
  for (int64_t r = 0; r < runs; r++) {
    int32_t sum = 0;
    for (int64_t i = r * run; i < least(k, (r + 1) * run); i++) sum += (int8_t)to[i];  // chars of aarch64 are unsigned
    sums[r] = sum;
  }
  *(float *)(sums + runs) = bad == 0 ? scale : bad;
}

static void NAME(quantise)(const struct moe_call *c, int32_t down, int64_t expert, int64_t from, int64_t to) {
  const struct moe_coded *q = down ? c->coded2 : c->coded13;
  const int64_t k = down ? c->intermediate_padded : c->hidden_padded;
  const int32_t *order = down ? c->order2 : c->order13;
  for (int64_t p = from; p < to; p++) {
    const char *x = down ? c->act + p * c->act_stride : c->x + p * c->x_stride;
    quantise_row(q, (const float *)x, order ? order + expert * k : 0, k, down ? c->act2 + p * c->act2_stride : c->x13 + p * c->x13_stride);
  }
}
