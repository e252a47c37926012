// The kernels against double, every instruction set that the machine has, with a guard behind every buffer: built with AddressSanitizer and
// UndefinedBehaviorSanitizer by SanitizedKernelsTest. Exit code 0 = all right; a line for each instruction set.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "moe.h"

void moe_gather(const struct moe_call *, const char *, int32_t, const float *, int64_t, int64_t, int64_t);
void moe_shrink(const struct moe_call *, int64_t, int32_t);
void moe_w13(const struct moe_call *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void moe_w2(const struct moe_call *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void moe_combine(const struct moe_call *, const float *, int64_t, int64_t, int64_t, char *, int32_t);
void moe_pack(char *, int32_t, int64_t, int64_t, const char *, int64_t, int64_t, const char *, int64_t, int64_t);

static uint64_t seed = 1;
static double uniform(void) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (double)(seed >> 11) / (1LL << 52) - 1;
}
static uint16_t bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static size_t size_of(int type) { return type == TYPE_F32 ? 4 : 2; }
// Stores a number that the type holds and returns it.
static double put(char *p, int type, double v) {
  if (type == TYPE_F32) {
    float f = (float)v;
    memcpy(p, &f, 4);
    return f;
  }
  if (type == TYPE_BF16) {
    uint16_t h = bf16((float)v);
    memcpy(p, &h, 2);
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  // F16: multiples of 1/64 up to 4 are exact in 16 bits.
  double q = rint(v * 64) / 64;
  _Float16 h = (_Float16)q;
  memcpy(p, &h, 2);
  return q;
}
static double get(const char *p, int type) {
  if (type == TYPE_F32) {
    float f;
    memcpy(&f, p, 4);
    return f;
  }
  uint16_t h;
  memcpy(&h, p, 2);
  if (type == TYPE_BF16) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
  _Float16 x;
  memcpy(&x, p, 2);
  return x;
}

struct matrix {
  int rows, cols, type;
  char *data;
  double *exact;
};
static struct matrix matrix(int rows, int cols, int type, double scale) {
  struct matrix m = {rows, cols, type, malloc((size_t)rows * cols * size_of(type)), malloc((size_t)rows * cols * sizeof(double))};
  for (long i = 0; i < (long)rows * cols; i++) m.exact[i] = put(m.data + i * size_of(type), type, uniform() * scale);
  return m;
}
static void drop(struct matrix m) {
  free(m.data);
  free(m.exact);
}
static char *zeros(size_t n) {
  char *p = aligned_alloc(64, (n + 63) / 64 * 64);
  memset(p, 0x7f, n);  // NaN: what is not written must not be read
  return p;
}

static double activation(int kind, double g, double u, const struct moe_call *c) {
  double lim = c->limit, uc = fmax(-lim, fmin(lim, u)), gc = fmin(g, lim);
  switch (kind) {
    case SILU: return gc / (1 + exp(-gc)) * uc;
    case GELU: return 0.5 * g * erfc(-g * sqrt(0.5)) * u;
    case GELU_TANH: return 0.5 * g * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * u;
    case SWIGLUOAI: return gc / (1 + exp(-c->alpha * gc)) * (uc + c->beta);
    case SWIGLU_STEP: return fmin(g / (1 + exp(-g)), lim) * uc;
    case SILU_NO_MUL: return u / (1 + exp(-u));
    case GELU_NO_MUL: return 0.5 * u * erfc(-u * sqrt(0.5));
    case GELU_TANH_NO_MUL: return 0.5 * u * (1 + tanh(0.7978845608028654 * (u + 0.044715 * u * u * u)));
    default: return u > 0 ? u * u : 0;
  }
}

// One expert, `tokens` tokens, top 1: its error relative to double.
static double layer(int isa, int h, int in, int tokens, int kind, int weight, int row, int hidden_type, int out_type, int rank, int dense_b) {
  int gated = kind < SILU_NO_MUL, hp = (h + 31) / 32 * 32, ip = (in + 31) / 32 * 32, width = gated ? HALF : BLOCK;
  struct matrix gate = matrix(in, h, weight, 2 / sqrt(h)), up = matrix(in, h, weight, 2 / sqrt(h)), down = matrix(h, in, weight, 2 / sqrt(in));
  struct matrix x = matrix(tokens, h, hidden_type, 1.5), b13 = matrix(1, ip / width * BLOCK, TYPE_F32, 0.5), b2 = matrix(1, hp, TYPE_F32, 0.5);
  struct matrix w = matrix(1, tokens, TYPE_F32, 1);
  size_t ws = size_of(weight);
  char *p13 = zeros((size_t)(ip / width) * BLOCK * hp * ws), *p2 = zeros((size_t)hp * ip * ws);
  int64_t block13 = BLOCK * hp * (int64_t)ws, block2 = BLOCK * ip * (int64_t)ws;
  for (int b = 0; b < ip / width; b++) {
    int r0 = b * width, r1 = gated ? r0 : r0 + HALF, n0 = in - r0, n1 = in - r1;
    n0 = n0 < 0 ? 0 : n0 > HALF ? HALF : n0;
    n1 = n1 < 0 ? 0 : n1 > HALF ? HALF : n1;
    struct matrix m0 = gated ? gate : up;
    moe_pack(p13 + b * block13, weight, h, hp, m0.data + (n0 ? r0 * h * ws : 0), h * (int64_t)ws, n0, up.data + (n1 ? r1 * h * ws : 0), h * (int64_t)ws, n1);
  }
  for (int b = 0; b < hp / BLOCK; b++) {
    int r0 = b * BLOCK, r1 = r0 + HALF, n0 = h - r0, n1 = h - r1;
    n0 = n0 < 0 ? 0 : n0 > HALF ? HALF : n0;
    n1 = n1 < 0 ? 0 : n1 > HALF ? HALF : n1;
    moe_pack(p2 + b * block2, weight, in, ip, down.data + (n0 ? r0 * in * ws : 0), in * (int64_t)ws, n0, down.data + (n1 ? r1 * in * ws : 0), in * (int64_t)ws, n1);
  }
  // Tokens in two segments, and some without adapter; A [rank][in], B [out][rank] or [rank][out] in memory.
  int cut[3] = {tokens / 3, tokens * 2 / 3, tokens};
  struct matrix a[2][3], b[2][3];
  struct moe_segment segments[2];
  char *s = zeros((size_t)tokens * 3 * (rank + 16) * 4);
  int64_t s_stride = 3 * (rank + 16) * 4;
  memset(segments, 0, sizeof segments);
  for (int g = 0; g < 2; g++) {
    segments[g].from = cut[g];
    segments[g].to = cut[g + 1];
    for (int t = 0; t < 3; t++) {
      int type = kind % 2 && (g + t) % 2 ? TYPE_F32 : weight, from = t == DOWN ? in : h, to = t == DOWN ? h : in;
      a[g][t] = matrix(rank ? rank : 1, from, type, 2 / sqrt(from));
      b[g][t] = dense_b ? matrix(rank ? rank : 1, to, type, 0.5) : matrix(to, rank ? rank : 1, type, 0.5);
      struct moe_target *q = segments[g].target + t;
      int64_t size = (int64_t)size_of(type);
      int shared = t == UP && g == 0;
      *q = (struct moe_target){a[g][shared ? GATE : t].data, from * (int64_t)size_of(a[g][shared ? GATE : t].type), (int64_t)size_of(a[g][shared ? GATE : t].type), b[g][t].data,
                               dense_b ? size : size * rank, dense_b ? size * to : size, (float *)(s + cut[g] * s_stride) + (shared ? 0 : t) * (rank + 16),
                               (t == GATE && !gated) ? 0 : rank, a[g][shared ? GATE : t].type, type, !shared || !gated};
      if (shared && !gated) {  // nobody else shrinks for it
        q->s = (float *)(s + cut[g] * s_stride) + t * (rank + 16);
      }
    }
  }
  int32_t *pair = malloc(4 * tokens), *position = malloc(4 * tokens);
  for (int t = 0; t < tokens; t++) {  // some other order
    int p = tokens - 1 - t;
    pair[p] = t;
    position[t] = p;
  }
  int64_t x_stride = hp * 4 + 64, act_stride = ip * 4 + 64;
  struct moe_call c = {.hidden = h, .intermediate = in, .hidden_padded = hp, .intermediate_padded = ip, .type13 = weight, .type2 = weight, .row_type = row, .isa = isa,
                       .activation = kind, .alpha = 1.7f, .beta = 1, .limit = kind == SWIGLUOAI || kind == SWIGLU_STEP ? 0.8f : INFINITY, .w13 = p13, .w13_block = block13, .w2 = p2,
                       .w2_block = block2, .b13 = (float *)b13.data, .b2 = (float *)b2.data, .x = zeros(tokens * x_stride), .x_stride = x_stride, .act = zeros(tokens * act_stride),
                       .act_stride = act_stride, .y = zeros(tokens * x_stride), .y_stride = x_stride, .pair = pair, .position = position, .segments = segments, .s_stride = s_stride,
                       .top_k = 1};
  char *out = malloc((size_t)tokens * h * size_of(out_type));
  int n = rank ? 2 : 0;
  c.x13 = c.x;
  c.act2 = c.act;
  c.x13_stride = x_stride;
  c.act2_stride = act_stride;
  moe_gather(&c, x.data, hidden_type, 0, 0, 0, tokens);
  for (int g = 0; g < n; g++) moe_shrink(&c, g, 0);
  for (int r = 0; r < tokens; r += MAX_ROWS) {
    int m = tokens - r < MAX_ROWS ? tokens - r : MAX_ROWS, half = ip / width / 2;
    moe_w13(&c, 0, r, m, 0, half, 0, n);
    moe_w13(&c, 0, r, m, half, ip / width - half, 0, n);
  }
  for (int g = 0; g < n; g++) moe_shrink(&c, g, 1);
  for (int r = 0; r < tokens; r += MAX_ROWS) moe_w2(&c, 0, r, tokens - r < MAX_ROWS ? tokens - r : MAX_ROWS, 0, hp / BLOCK, 0, n);
  moe_combine(&c, (float *)w.data, 0, 0, tokens, out, out_type);
  double worst = 0, norm = 0;
  double *act = malloc(in * sizeof(double));
  for (int t = 0; t < tokens; t++) {
    int p = position[t], g = !rank || p < cut[0] ? -1 : p < cut[1] ? 0 : 1;
    double sg[64], su[64], sd[64];
    const double *xe = x.exact + (long)t * h;
    for (int r = 0; g >= 0 && r < rank; r++) {
      struct matrix ua = a[g][g == 0 ? GATE : UP];
      if (!gated && g == 0) ua = a[g][GATE];
      sg[r] = su[r] = 0;
      for (int i = 0; i < h; i++) {
        sg[r] += a[g][GATE].exact[(long)r * h + i] * xe[i];
        su[r] += ua.exact[(long)r * h + i] * xe[i];
      }
    }
    for (int i = 0; i < in; i++) {
      double gv = gated ? b13.exact[i / HALF * BLOCK + i % HALF] : 0, uv = b13.exact[gated ? i / HALF * BLOCK + HALF + i % HALF : i];
      for (int j = 0; j < h; j++) {
        gv += gate.exact[(long)i * h + j] * xe[j];
        uv += up.exact[(long)i * h + j] * xe[j];
      }
      for (int r = 0; g >= 0 && r < rank; r++) {
        gv += sg[r] * b[g][GATE].exact[dense_b ? (long)r * in + i : (long)i * rank + r];
        uv += su[r] * b[g][UP].exact[dense_b ? (long)r * in + i : (long)i * rank + r];
      }
      act[i] = activation(kind, gv, uv, &c);
      if (row == TYPE_BF16) {
        char tmp[4];
        act[i] = put(tmp, TYPE_BF16, act[i]);
      }
    }
    for (int r = 0; g >= 0 && r < rank; r++) {
      sd[r] = 0;
      for (int i = 0; i < in; i++) sd[r] += a[g][DOWN].exact[(long)r * in + i] * act[i];
    }
    for (int o = 0; o < h; o++) {
      double y = b2.exact[o];
      for (int i = 0; i < in; i++) y += down.exact[(long)o * in + i] * act[i];
      for (int r = 0; g >= 0 && r < rank; r++) y += sd[r] * b[g][DOWN].exact[dense_b ? (long)r * h + o : (long)o * rank + r];
      y *= w.exact[t];
      double e = get(out + ((size_t)t * h + o) * size_of(out_type), out_type) - y;
      worst += e * e;
      norm += y * y;
      if (isnan(e)) worst = INFINITY;
    }
  }
  free(act);
  free(out);
  free(c.x);
  free(c.act);
  free(c.y);
  free(pair);
  free(position);
  free(s);
  for (int g = 0; g < 2; g++)
    for (int t = 0; t < 3; t++) {
      drop(a[g][t]);
      drop(b[g][t]);
    }
  free(p13);
  free(p2);
  drop(gate), drop(up), drop(down), drop(x), drop(b13), drop(b2), drop(w);
  return sqrt(worst / norm);
}

// A matrix in codes, of 47 rows: packed in two blocks, of which the second one's halves have 15 rows and none; its product's error relative to double.
enum { CODED_OUT = 47 };
void moe_reorder(const struct moe_call *, int32_t, int64_t, int64_t, int64_t);
static int below(int n) { return (int)((uniform() + 1) / 2 * n); }
int32_t moe_pack_coded(char *, const struct moe_coded *, int64_t, int64_t, const struct moe_source *, int64_t, int64_t, const struct moe_source *, int64_t, int64_t);
static int32_t moe_pack_coded_of(char *to, const struct moe_coded *q, int64_t k, int64_t kp, const struct moe_source *m, int64_t row) {
  int64_t n0 = CODED_OUT - row, n1 = n0 - HALF;
  return moe_pack_coded(to, q, k, kp, m, row, n0 < 0 ? 0 : n0 > HALF ? HALF : n0, m, row + HALF, n1 < 0 ? 0 : n1 > HALF ? HALF : n1);
}
static double e4m3(int c) {
  int e = c >> 3 & 15, m = c & 7;
  double v = e ? ldexp(1 + m / 8.0, e - 7) : ldexp(m, -9);
  return c & 128 ? -v : v;
}
static size_t scale_size(int type) { return (size_t[]){4, 2, 2, 1, 1}[type]; }
static double scale_value(const char *p, int type) {
  if (type < SCALE_E8M0) return get(p, (int[]){TYPE_F32, TYPE_BF16, TYPE_F16}[type]);
  return type == SCALE_E8M0 ? ldexp(1, (uint8_t)*p - 127) : e4m3((uint8_t)*p);
}

// Rows of int8, as a row type.
enum { ROWS_I8 = TYPES };

// Quantises rows; what they are then, in double, goes to `exact`. The columns come in some order.
static char *int8_rows(int isa, const struct moe_coded *q, int rows, int k, int kp, int64_t *stride, double *exact) {
  int64_t run = q->format == CODE_4 ? q->stretch : q->group, bytes = kp + ((kp + run - 1) / run + 1) * 4;
  *stride = (bytes + 63) / 64 * 64;
  float *x = aligned_alloc(64, (size_t)rows * kp * 4);
  int32_t *order = malloc(sizeof(int32_t) * kp);
  for (int i = 0; i < kp; i++) order[i] = i;
  int shuffled = below(2);
  for (int i = k - 1; shuffled && i > 0; i--) {
    int j = below(i + 1), swap = order[i];
    order[i] = order[j];
    order[j] = swap;
  }
  char *to = aligned_alloc(64, (size_t)rows * *stride);
  memset(to, 0x7f, (size_t)rows * *stride);
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < kp; i++) x[r * kp + i] = i >= k || r == 1 ? 0 : (float)(uniform() * (r + 1));
  struct moe_call c = {.isa = isa, .hidden_padded = kp, .intermediate_padded = kp, .int8 = 3, .coded13 = q, .coded2 = q, .x = (char *)x, .act = (char *)x, .x_stride = kp * 4, .act_stride = kp * 4,
                       .x13 = to, .act2 = to, .x13_stride = *stride, .act2_stride = *stride, .order13 = shuffled ? order : 0, .order2 = shuffled ? order : 0};
  moe_reorder(&c, below(2), 0, 0, rows / 2);
  moe_reorder(&c, below(2), 0, rows / 2, rows);
  for (int r = 0; r < rows; r++) {
    float most = 0;
    for (int i = 0; i < k; i++) most = fmaxf(most, fabsf(x[r * kp + i]));
    float scale = most / 127;
    for (int i = 0; i < kp; i++) exact[r * kp + i] = scale == 0 ? 0 : rintf(x[r * kp + order[i]] / scale) * (double)scale;
  }
  free(x), free(order);
  return to;
}

static double coded(int isa, int row_type, int rows, int k, int format, int group, int lie, int scale_type, int splat, int zero_lie) {
  int bits = format == CODE_4 ? 4 : 8, kp = (k + 31) / 32 * 32, word = 32 / bits, groups = (k + group - 1) / group, out = CODED_OUT;
  // Exactly as many bytes as the matrix has, so that reading more is seen.
  int in_words = lie == LIE_ALONG_IN ? (k + word - 1) / word : k, out_words = lie == LIE_DENSE || lie == LIE_ALONG_IN ? out : (out + word - 1) / word;
  size_t unit = lie == LIE_DENSE ? 1 : 32 / bits, bytes = ((size_t)in_words * out_words * unit * bits + 7) / 8;
  int transposed = below(2);
  struct moe_source m = {.codes = malloc(bytes), .code_row = (transposed ? 1 : in_words) * (int64_t)unit, .code_col = (transposed ? out_words : 1) * (int64_t)unit, .code_lie = lie,
                         .flip = bits == 8 && lie != LIE_DENSE ? 128 : 0, .scale_rows = splat ? 16 : 1, .groups = groups};
  for (size_t i = 0; i < bytes; i++) ((char *)m.codes)[i] = (char)(below(256) & (format == CODE_E4M3 ? 0xbf : 0xff));
  int32_t *order = malloc(sizeof(int32_t) * k);
  for (int i = 0; i < k; i++) order[i] = i;
  if (below(3) == 0) {
    m.order = order;
    for (int i = k - 1; i > 0; i--) {
      int j = below(i + 1), swap = order[i];
      order[i] = order[j];
      order[j] = swap;
    }
  }
  int scale_rows = splat ? (out + 15) / 16 : out;
  size_t size = scale_size(scale_type);
  m.scales = malloc(size * scale_rows * groups);
  m.scale_row = groups * (int64_t)size;
  m.scale_col = (int64_t)size;
  for (int i = 0; i < scale_rows * groups; i++) {
    char *p = (char *)m.scales + i * size;
    if (scale_type == SCALE_E8M0) *p = (char)(120 + below(4));
    else if (scale_type == SCALE_E4M3) *p = (char)(0x30 + below(16));
    else put(p, (int[]){TYPE_F32, TYPE_BF16, TYPE_F16}[scale_type], 0.5 + below(64) / 64.0);
  }
  int zero_bits = zero_lie == LIE_DENSE ? 8 : bits, zero_words = (out + word - 1) / word;
  if (zero_lie >= 0) {
    size_t n = zero_lie == LIE_DENSE ? (size_t)out * groups : (size_t)zero_words * groups * 4;
    m.zeros = malloc(n);
    for (size_t i = 0; i < n; i++) ((char *)m.zeros)[i] = (char)below(zero_lie == LIE_DENSE ? 1 << bits : 256);
    m.zero_row = zero_lie == LIE_DENSE ? groups : (int64_t)groups * word;
    m.zero_col = zero_lie == LIE_DENSE ? 1 : word;
    m.zero_lie = zero_lie;
    m.zero_bits = zero_bits;
  }
  const float factors[4] = {0, 0, 0.25f, 3};
  struct moe_coded q = {.format = row_type == ROWS_I8 && format == CODE_I8 ? CODE_U8X4 : format, .group = group >= kp ? kp : group, .scale_type = scale_type, .scale_lanes = splat ? 2 : BLOCK, .factors = factors};
  q.stretch = q.group == kp ? STRETCH : q.group < STRETCH ? q.group : STRETCH;
  q.groups = (kp + q.group - 1) / q.group;
  q.scales = (int64_t)kp * BLOCK * bits / 8;
  int64_t block = q.scales + q.groups * q.scale_lanes * (int64_t)size;
  if (m.zeros) {
    q.zeros = block;
    q.zero_offset = 1 - (bits == 8 ? 128 : 0);
    block += q.groups * BLOCK * bits / 8;
  }
  for (int i = 0; i < 16; i++) q.table[i] = (int8_t)(m.zeros ? i : i - 8);
  static const int8_t awq[] = {0, 4, 1, 5, 2, 6, 3, 7};
  double *exact = malloc(sizeof(double) * out * k);
  for (int o = 0; o < out; o++)
    for (int i = 0; i < k; i++) {
      int64_t from = order[i];
      int64_t at = lie == LIE_DENSE ? o * m.code_row + from * m.code_col
                   : lie == LIE_ALONG_IN ? o * m.code_row + from / word * m.code_col + from % word
                                         : o / word * m.code_row + (lie == LIE_ALONG_OUT ? o % word : awq[o % 8]) + from * m.code_col;
      int code = bits == 8 ? (uint8_t)m.codes[at] : (uint8_t)m.codes[at / 2] >> at % 2 * 4 & 15;
      double v = format == CODE_E4M3 ? e4m3(code) / 256 : bits == 8 ? (lie == LIE_DENSE ? (int8_t)code : code - 128) : code - 8;
      if (m.zeros) {
        int64_t z = zero_lie == LIE_DENSE ? o * m.zero_row + i / group : o / word * m.zero_row + (zero_lie == LIE_ALONG_OUT ? o % word : awq[o % 8]) + i / group * m.zero_col;
        v = code - (zero_bits == 8 ? (uint8_t)m.zeros[z] : (uint8_t)m.zeros[z / 2] >> z % 2 * 4 & 15) - 1;
      }
      double s = scale_value(m.scales + (o / m.scale_rows * m.scale_row + i / group * m.scale_col), scale_type);
      exact[o * k + i] = v * s / (scale_type == SCALE_E4M3 ? 256 : 1) * factors[2 + o / HALF % 2];
    }
  int64_t xs = (int64_t)kp * (row_type == TYPE_BF16 ? 2 : 4);
  double *xe = calloc((size_t)rows * kp, sizeof(double));
  char *x;
  if (row_type == ROWS_I8) {
    x = int8_rows(isa, &q, rows, k, kp, &xs, xe);
  } else {
    x = aligned_alloc(64, (rows * xs + 63) / 64 * 64);
    memset(x, 0, rows * xs);
    for (int r = 0; r < rows; r++)
      for (int i = 0; i < k; i++) xe[r * kp + i] = put(x + r * xs + i * xs / kp, row_type, uniform());
  }
  const struct kernels *own = kernels_of(isa);
  coded_fn *product = row_type == ROWS_I8 ? own->coded8 : own->coded[row_type];
  double worst = 0, norm = 0;
  for (int b = 0; b * BLOCK < out; b++) {
    char *w = malloc(block);
    float *c = malloc(sizeof(float) * rows * BLOCK), alone[BLOCK];
    if (moe_pack_coded_of(w, &q, k, kp, &m, b * BLOCK)) worst = INFINITY;
    if (row_type != TYPE_F32) own->begin(&q, kp, rows, row_type == ROWS_I8);
    product(&q, 1, x, xs, rows, w, kp, c, b == 0);
    // The last row alone has the same bits.
    if (row_type != TYPE_F32) own->begin(&q, kp, 1, row_type == ROWS_I8);
    product(&q, 1, x + (rows - 1) * xs, xs, 1, w, kp, alone, 1);
    if (memcmp(alone, c + (rows - 1) * BLOCK, sizeof alone)) worst = INFINITY;
    for (int r = 0; r < rows; r++)
      for (int o = b * BLOCK; o < out && o < (b + 1) * BLOCK; o++) {
        double y = 0;
        for (int i = 0; i < k; i++) y += exact[o * k + i] * xe[r * kp + i];
        double e = c[r * BLOCK + o % BLOCK] - y;
        worst += isnan(e) ? INFINITY : e * e;
        norm += y * y;
      }
    free(w), free(c);
  }
  own->done();
  free(order), free(exact), free(xe), free(x), free((char *)m.codes), free((char *)m.scales), free((char *)m.zeros);
  return sqrt(worst / norm);
}

static int all_coded(int isa, const char *name) {
  int counts[] = {1, 2, 5, 7, 13, 40}, ks[] = {8, 33, 72, 300}, bad = 0, cases = 0, int8 = 0;
  double worst = 0;
  for (int n = 0; n < 6; n++)
    for (int i = 0; i < 4; i++)
      for (int format = CODE_4; format <= CODE_E4M3; format++)
        for (int group = 0; group < 5; group++)
          for (int zero = 0; zero < 2; zero++) {
            int row = kernels_of(isa)->coded8 && format != CODE_E4M3 && cases / 2 % 3 == 0 ? ROWS_I8 : kernels_of(isa)->coded[TYPE_BF16] && !zero && cases % 2 ? TYPE_BF16 : TYPE_F32;
            int lie = format == CODE_E4M3 ? LIE_DENSE : format == CODE_4 ? cases % 4 : zero ? 1 + cases % 2 : cases % 3;
            int scale = cases / 3 % 5, splat = cases % 7 == 0, zero_lie = format == CODE_E4M3 || !zero ? -1 : cases % 3 == 0 ? LIE_DENSE : format == CODE_4 ? 2 + cases % 2 : LIE_ALONG_OUT;
            // Zeros stand beside scales of single outputs.
            double e = coded(isa, row, counts[n], ks[i], format, (int[]){8, 32, 48, 128, 4096}[group], lie, scale, splat && zero_lie < 0, zero_lie);
            cases++;
            int8 += row == ROWS_I8;
            worst = fmax(worst, e);
            if (!(e < 2e-6)) {
              printf("%s: codes %d, group %d, %d rows of %d, lie %d, scales %d, zeros %d, row type %d: error %g\n", name, format, group, counts[n], ks[i], lie, scale, zero_lie, row, e);
              bad++;
            }
          }
  printf("%s: %d products with codes, %d of them with rows of int8, largest error %.1e\n", name, cases, int8, worst);
  return bad;
}

// A row's bits do not depend on the rows beside it: bf16 rows and weights.
static int same_bits(int isa, const char *name) {
  product_fn *product = kernels_of(isa)->product[TYPE_BF16][TYPE_BF16];
  if (!product) return 0;
  enum { ROWS = 128, K = 1120, STRIDE = K * 2 + 64 };
  int counts[] = {1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 31, 32, 33, 48, 64, 95, 96, 97, 113, 128}, bad = 0;
  char *x = aligned_alloc(64, ROWS * STRIDE), *w = aligned_alloc(64, 2 * BLOCK * K * 2);
  for (int i = 0; i < ROWS * STRIDE; i += 2) put(x + i, TYPE_BF16, uniform());
  for (int i = 0; i < BLOCK * K; i++) put(w + 2 * i, TYPE_BF16, uniform());
  float alone[ROWS * BLOCK];
  kernels_of(isa)->begin(0, K, 1, 0);
  for (int r = 0; r < ROWS; r++) product(x + r * STRIDE, STRIDE, 1, w, K, alone + r * BLOCK, 1);
  for (int n = 0; n < 20; n++)
    for (int first = 0; first < 3; first++) {
      float *c = malloc(sizeof(float) * counts[n] * BLOCK);
      kernels_of(isa)->begin(0, K, counts[n], 0);
      product(x, STRIDE, counts[n], w, K, c, first);
      if (memcmp(c, alone, sizeof(float) * counts[n] * BLOCK)) {
        printf("%s: %d rows of bf16 have other bits than each of them alone\n", name, counts[n]);
        bad++;
      }
      free(c);
    }
  kernels_of(isa)->done();
  free(x), free(w);
  return bad;
}

// The same for weights in codes, where few rows and many may take other units: numbers of all magnitudes, that cancel, or denormal.
static uint16_t some_bf16(int kind) {
  const int sign = below(2) << 15, mantissa = below(128);
  switch (kind) {
    case 0: return bf16((float)uniform());
    case 1: return (uint16_t)(sign | below(200) << 7 | mantissa);
    case 2: return (uint16_t)(sign | below(12) << 7 | mantissa);
    default: return (uint16_t)(sign | (120 + below(30)) << 7 | (mantissa & 0x70));
  }
}

static int same_bits_coded(int isa, const char *name) {
  coded_fn *product = kernels_of(isa)->coded[TYPE_BF16];
  if (!product) return 0;
  enum { ROWS = 65, K = 288, STRIDE = K * 2 + 64 };
  const int layouts[][2] = {{CODE_4, 32}, {CODE_4, 96}, {CODE_4, 16}, {CODE_I8, 32}, {CODE_I8, K}, {CODE_E4M3, 32}, {CODE_E4M3, 8}};
  const int counts[] = {1, 2, 3, 15, 16, 17, 31, 32, 33, 50, 65};
  const float factors[2] = {1, 0.5f};
  int bad = 0, cases = 0;
  char *x = aligned_alloc(64, ROWS * STRIDE);
  for (int kind = 0; kind < 4; kind++)
    for (int n = 0; n < 7; n++) {
      const int group = layouts[n][1], groups = K / group;
      struct moe_coded q = {.format = layouts[n][0], .group = group, .stretch = group == K ? STRETCH : group, .groups = groups, .scale_type = SCALE_F32, .scale_lanes = BLOCK, .factors = factors};
      q.scales = K * (q.format == CODE_4 ? BLOCK / 2 : BLOCK);
      for (int i = 0; i < 16; i++) q.table[i] = (int8_t)(i - 8);
      char *w = malloc(q.scales + groups * BLOCK * 4);
      for (int i = 0; i < q.scales; i++) w[i] = (char)(below(256) & (q.format == CODE_E4M3 ? 0xb7 : 0xff));
      for (int i = 0; i < groups * BLOCK; i++) put(w + q.scales + i * 4, TYPE_F32, uniform());
      for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < STRIDE / 2; i++) ((uint16_t *)(x + r * STRIDE))[i] = some_bf16(kind);
      float alone[ROWS * BLOCK];
      kernels_of(isa)->begin(&q, K, 1, 0);
      for (int r = 0; r < ROWS; r++) product(&q, 0, x + r * STRIDE, STRIDE, 1, w, K, alone + r * BLOCK, 1);
      for (int m = 0; m < 11; m++, cases++) {
        float *c = malloc(sizeof(float) * counts[m] * BLOCK);
        kernels_of(isa)->begin(&q, K, counts[m], 0);
        product(&q, 0, x, STRIDE, counts[m], w, K, c, m % 3);
        if (memcmp(c, alone, sizeof(float) * counts[m] * BLOCK)) {
          printf("%s: codes %d, group %d, numbers %d: %d rows have other bits than each of them alone\n", name, layouts[n][0], group, kind, counts[m]);
          bad++;
        }
        free(c);
      }
      free(w);
    }
  kernels_of(isa)->done();
  free(x);
  printf("%s: %d products with codes have the bits of each row alone\n", name, cases - bad);
  return bad;
}

// The product of rows as they come with weights as they lie: the largest error relative to double, every pair of dtypes. Buffers end where the last
// element does. A token's bits depend neither on the tokens and outputs of the same call nor on where a call begins.
void moe_dense(int32_t, const char *, int32_t, const char *, int32_t, int64_t, const float *, char *, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
static int all_dense(int isa, const char *name) {
  int ins[] = {1, 7, 16, 33, 64, 95, 300}, outs[] = {1, 3, 4, 9, 22}, counts[] = {1, 2, 4, 7, 13}, bad = 0, cases = 0;
  double worst = 0;
  for (int i = 0; i < 7; i++)
    for (int o = 0; o < 5; o++)
      for (int n = 0; n < 5; n++)
        for (int types = 0; types < TYPES * TYPES; types++) {
          int in = ins[i], out = outs[o], tokens = counts[n], pad = cases % 2 ? 0 : 6;
          struct matrix x = matrix(tokens, in, types / TYPES, 1), w = matrix(out, in, types % TYPES, 1), bias = matrix(1, out, TYPE_F32, 1);
          size_t ws = size_of(w.type), stride = (size_t)(in + pad) * ws;
          // Rows of weights may be apart.
          char *apart = malloc((out - 1) * stride + in * ws);
          for (int r = 0; r < out; r++) memcpy(apart + r * stride, w.data + r * in * ws, in * ws);
          const float *b = cases % 3 ? (float *)bias.data : 0;
          float *y = malloc(sizeof(float) * tokens * out), *again = malloc(sizeof(float) * tokens * out);
          memset(y, 0x7f, sizeof(float) * tokens * out);
          moe_dense(isa, x.data, x.type, apart, w.type, stride, b, (char *)y, 4 * out, in, 0, tokens, 0, out);
          int same = 1, cut_t = below(tokens + 1), cut_o = below(out + 1);
          for (int part = 0; part < 4; part++) {
            int t0 = part & 1 ? cut_t : 0, t1 = part & 1 ? tokens : cut_t, o0 = part & 2 ? cut_o : 0, o1 = part & 2 ? out : cut_o;
            memset(again, 0x55, sizeof(float) * tokens * out);
            moe_dense(isa, x.data, x.type, apart, w.type, stride, b, (char *)again, 4 * out, in, t0, t1, o0, o1 - o0);
            for (int t = 0; t < tokens; t++)
              for (int j = 0; j < out; j++) {
                int inside = t >= t0 && t < t1 && j >= o0 && j < o1;
                uint32_t v, u;
                memcpy(&v, again + t * out + j, 4), memcpy(&u, y + t * out + j, 4);
                same &= v == (inside ? u : 0x55555555u);
              }
          }
          double error = 0;
          for (int t = 0; t < tokens; t++)
            for (int j = 0; j < out; j++) {
              double v = b ? bias.exact[j] : 0, all = fabs(v);
              for (int k = 0; k < in; k++) {
                double p = x.exact[t * in + k] * w.exact[j * in + k];
                v += p;
                all += fabs(p);
              }
              double e = fabs(y[t * out + j] - v);
              error = isnan(e) ? INFINITY : fmax(error, e / all);
            }
          cases++;
          worst = fmax(worst, error);
          if (!(error < 1e-6) || !same) {
            printf("%s: %d tokens, %d outputs, rows of %d, types %d and %d: error %g%s\n", name, tokens, out, in, x.type, w.type, error, same ? "" : ", other bits in parts");
            bad++;
          }
          free(apart), free(y), free(again), drop(x), drop(w), drop(bias);
        }
  printf("%s: %d products with weights as they lie, largest error %.1e\n", name, cases, worst);
  return bad;
}

// The end of a layer, all combinations of what there is to add; buffers end where the last element does.
void moe_finish(int32_t, const float *, const float *, const float *, int32_t, const float *, char *, int32_t, int64_t, int64_t, int64_t);
static int all_finish(int isa, const char *name) {
  int sizes[] = {1, 15, 16, 47, 64}, bad = 0, cases = 0;
  for (int s = 0; s < 5; s++)
    for (int what = 0; what < 16; what++)
      for (int type = 0; type < TYPES; type++) {
        int h = sizes[s], tokens = 5, from = cases % 3, to = tokens - cases % 2, half = what & 1;
        struct matrix routed = matrix(tokens, h, TYPE_F32, 1), shared = matrix(tokens, h, TYPE_F32, 1), factor = matrix(1, tokens, TYPE_F32, 1), bias = matrix(1, h, TYPE_F32, 1);
        char *out = malloc(tokens * h * size_of(type));
        memset(out, 0x55, tokens * h * size_of(type));
        moe_finish(isa, (float *)routed.data, what & 2 ? (float *)shared.data : 0, what & 4 ? (float *)factor.data : 0, half, what & 8 ? (float *)bias.data : 0, out, type, h, from, to);
        int wrong = 0;
        for (int i = 0; i < tokens * h; i++) {
          double v = routed.exact[i];
          if (what & 2) v += shared.exact[i] * (what & 4 ? factor.exact[i / h] : 1);
          v = v * (half ? 0.5 : 1) + (what & 8 ? bias.exact[i % h] : 0);
          if (i / h < from || i / h >= to) {
            char untouched[4] = {0x55, 0x55, 0x55, 0x55};
            wrong += memcmp(out + i * size_of(type), untouched, size_of(type)) != 0;
          } else {
            wrong += !(fabs(get(out + i * size_of(type), type) - v) <= (type == TYPE_F32 ? 1e-6 : type == TYPE_BF16 ? 0x1p-8 : 0x1p-11) * (fabs(v) + (type == TYPE_F32)) + 1e-6);
          }
        }
        cases++;
        if (wrong) {
          printf("%s: the sum of %d columns, %d, output %d: %d wrong\n", name, h, what, type, wrong);
          bad++;
        }
        free(out), drop(routed), drop(shared), drop(factor), drop(bias);
      }
  return bad;
}

// Experts and weights, against the same rules in plain C: every way of scoring, groups, biases; buffers end where the last element does.
void moe_route(int32_t, const struct moe_route *, const float *, const float *, const float *, int32_t *, float *, int64_t, int64_t);
static int before(float a, float b) { return a > b || (isnan(b) && !isnan(a)); }
static void softmax(const float *z, int n, float *out) {
  double most = -INFINITY, sum = 0;
  for (int i = 0; i < n; i++) most = fmax(most, z[i]);
  for (int i = 0; i < n; i++) sum += exp(z[i] - most);
  for (int i = 0; i < n; i++) out[i] = (float)(exp(z[i] - most) / sum);
}
static int wrong_routes(int isa, const struct moe_route *r, const float *z, const float *bias, const float *scale, int tokens) {
  int n = (int)r->experts, k = (int)r->top_k, wrong = 0;
  int32_t *ids = malloc(sizeof(int32_t) * tokens * k);
  float *weights = malloc(sizeof(float) * tokens * k), *score = malloc(sizeof(float) * n), *choice = malloc(sizeof(float) * n), *w = malloc(sizeof(float) * k);
  char *open = malloc(n);
  moe_route(isa, r, z, bias, scale, ids, weights, 0, tokens / 2);
  moe_route(isa, r, z, bias, scale, ids, weights, tokens / 2, tokens);
  for (int t = 0; t < tokens; t++, z += n) {
    for (int e = 0; e < n; e++) {
      double v = z[e];
      score[e] = r->scoring == SCORE_SIGMOID ? (float)(1 / (1 + exp(-v))) : r->scoring == SCORE_SQRT_SOFTPLUS ? (float)sqrt(fmax(v, 0) + log1p(exp(-fabs(v)))) : z[e];
      open[e] = 1;
    }
    if (r->scoring == SCORE_SOFTMAX) softmax(z, n, score);
    for (int e = 0; e < n; e++) choice[e] = bias ? score[e] + bias[e] : score[e];
    if (r->groups > 1) {
      int size = n / (int)r->groups;
      memset(open, 0, n);
      for (int m = 0; m < r->top_groups; m++) {
        int best = -1;
        float most = 0;
        for (int g = 0; g < r->groups; g++) {
          float first = -INFINITY, second = -INFINITY;
          for (int e = g * size; e < (g + 1) * size; e++) {
            second = fmaxf(second, fminf(first, choice[e]));
            first = fmaxf(first, choice[e]);
          }
          float v = r->two ? first + second : first;
          if (!open[g * size] && (best < 0 || v > most)) best = g, most = v;
        }
        memset(open + best * size, 1, size);
      }
    }
    for (int i = 0; i < k; i++) {
      int best = -1;
      for (int e = 0; e < n; e++)
        if (open[e] && (best < 0 || before(choice[e], choice[best]))) best = e;
      open[best] = 0;
      w[i] = score[best];
      wrong += ids[t * k + i] != best;
    }
    if (r->scoring == SCORE_SOFTMAX_TOPK) softmax(w, k, w);
    double sum = 0;
    for (int i = 0; i < k; i++) sum += w[i];
    sum = fmax(sum + r->epsilon, r->sum_floor);
    for (int i = 0; i < k; i++) {
      double v = (r->renormalize ? w[i] / sum : w[i]) * r->scaling * (scale ? scale[ids[t * k + i]] : 1), got = weights[t * k + i];
      wrong += !(fabs(got - v) <= 4e-7 * fabs(v)) && !(isnan(got) && isnan(v));
    }
  }
  free(ids), free(weights), free(score), free(choice), free(w), free(open);
  return wrong;
}
static int all_routes(int isa, const char *name) {
  int experts[] = {1, 4, 16, 24, 60, 64, 129, 1024}, bad = 0, cases = 0;
  for (int i = 0; i < 8; i++)
    for (int scoring = 0; scoring < 4; scoring++)
      for (int what = 0; what < 16; what++) {
        int n = experts[i], k = n < 8 ? n : what % 3 ? 8 : 3, tokens = 5, grouped = (what & 4) && n % 4 == 0 && n > 8;
        struct moe_route r = {.experts = n, .top_k = k, .scoring = scoring, .groups = grouped ? 4 : 1, .top_groups = grouped ? n == 16 ? 3 : 2 : 1, .two = what & 1, .renormalize = what >> 1 & 1,
                              .epsilon = what & 8 ? 1e-20 : 0, .sum_floor = what & 8 ? 0.5 : 0, .scaling = what & 1 ? 2.5f : 1};
        struct matrix z = matrix(tokens, n, TYPE_F32, what & 8 ? 30 : 3), bias = matrix(1, n, TYPE_F32, 0.3), scale = matrix(1, n, TYPE_F32, 1);
        float *v = (float *)z.data;
        if (what == 5)  // ties, of two zeros as well
          for (int e = 0; e < tokens * n; e++) v[e] = e / n == 0 ? 1 : e % 2 ? 0.0f : -0.0f;
        if (what == 10 && n > 8) v[n + 2] = NAN, v[2 * n + 1] = INFINITY, v[3 * n] = -INFINITY, v[4 * n + 5] = -1e30f;
        int wrong = wrong_routes(isa, &r, v, what & 2 ? (float *)bias.data : 0, what & 4 ? (float *)scale.data : 0, tokens);
        cases++;
        if (wrong) {
          printf("%s: routing of %d experts, %d a token, scoring %d, case %d: %d wrong\n", name, n, k, scoring, what, wrong);
          bad++;
        }
        drop(z), drop(bias), drop(scale);
      }
  printf("%s: %d ways of routing\n", name, cases);
  return bad;
}

// With the number of an instruction set only that one, so that several may run side by side; 0 is all of them. With a second argument only products
// with codes: all that a processor of fewer instructions computes otherwise.
int main(int argc, char **argv) {
  const char *names[] = {"none", "avx2", "avx512", "avx512bf16", "amx", "neon", "neonbf16"};
  int best = moe_isa(), bad = 0;
#ifdef MOE_TILES  // tiles are a header's, everything else is the processor's
  if (best == ISA_BF16) best = ISA_AMX;
  names[ISA_AMX] = "amx (tiles in C)";
#endif
  int shapes[][2] = {{64, 32}, {33, 17}, {1, 1}, {130, 70}, {96, 1056}};
  int counts[] = {1, 3, 12, 17, 33, 65, 129};
  for (int isa = best < ISA_NEON ? ISA_AVX2 : ISA_NEON; isa <= (best < ISA_NEON ? ISA_AMX : ISA_NEON_BF16); isa++) {
    if (argc > 1 && atoi(argv[1]) && isa != atoi(argv[1])) continue;
    if (isa > best) {
      printf("%s: skipped, this machine does not have it\n", names[isa]);
      continue;
    }
    bad += all_coded(isa, names[isa]);
    if (argc > 2) continue;
    bad += same_bits(isa, names[isa]);
    bad += same_bits_coded(isa, names[isa]);
    bad += all_dense(isa, names[isa]);
    bad += all_finish(isa, names[isa]);
    bad += all_routes(isa, names[isa]);
    double worst = 0, worst_bf16 = 0;
    int cases = 0, run = 0;
    for (int kind = SILU; kind <= RELU2_NO_MUL; kind++)
      for (int s = 0; s < 5; s++)
        for (int n = 0; n < 7; n++, cases++) {
          // More than 1024 columns matter to rows and passes, not to the activation: three kinds for each number of tokens, or this takes longer than all the rest.
          if (s == 4 && kind / 3 != n % 3) continue;
          int weight = cases % 3, rank = (int[]){0, 16, 3, 8}[cases % 4], hidden = cases / 3 % 3;
          int bf = kernels_of(isa)->product[TYPE_BF16][TYPE_BF16] && cases % 2;
          if (bf) weight = hidden = TYPE_BF16;
          int h = shapes[s][0], in = shapes[s][1];
          // Sums of very few terms may cancel.
          double limit = bf ? 2e-3 : h < 33 ? 1e-4 : 1e-5;
          double e = layer(isa, h, in, counts[n], kind, weight, bf ? TYPE_BF16 : TYPE_F32, hidden, TYPE_F32, rank, cases % 5 != 0);
          run++;
          if (!(e <= limit)) {
            printf("%s: activation %d, %d x %d, %d tokens, weights %d, rank %d%s: error %g\n", names[isa], kind, h, in, counts[n], weight, rank, bf ? ", rows of bf16" : "", e);
            bad++;
          }
          if (bf) worst_bf16 = fmax(worst_bf16, e);
          else worst = fmax(worst, e);
        }
    for (int out = TYPE_BF16; out <= TYPE_F16; out++) {
      double e = layer(isa, 130, 70, 9, SILU, TYPE_F32, TYPE_F32, TYPE_F32, out, 0, 1);
      if (!(e < (out == TYPE_BF16 ? 0x1p-8 : 0x1p-11))) {
        printf("%s: output %d: error %g\n", names[isa], out, e);
        bad++;
      }
    }
    printf("%s: %d cases, largest error %.1e, with rows of bf16 %.1e\n", names[isa], run, worst, worst_bf16);
  }
  return bad ? 1 : 0;
}
