/*
 * A stand-in for FlashInfer's fused_moe_trtllm_sm100 module: `trtllm_bf16_moe`, `trtllm_fp4_block_scale_moe` (MXFP4 and NVFP4 weights),
 * `trtllm_fp8_block_scale_moe` (MXFP8, and blocks of 128 x 128), `trtllm_fp8_per_tensor_scale_routed_moe` and
 * `trtllm_mxint4_block_scale_moe` with their argument lists, checks, order of weights and of rows, and arithmetic, slowly and on the host.
 * Like the real one it holds no kernels and asks its host for one.
 */
#include "checks.h"
#include "numbers.h"
#include "standin.h"

enum { TILE = 8, SEPARATE_IDS = 2, SWIGLU = 3, MAJOR_K = 0, BLOCK_MAJOR_K = 2, PIECE = 64, PIECE_BYTES = 128, BLOCK = 128, FP8_BLOCKS = 1, MX_FP8 = 2 };

/* For the tests: what was seen. */
static _Atomic int64_t calls, calls_with_delta;
static _Atomic(void*) last_stream;
static const char* sha256 = "";

EXPORT int64_t standin_calls(void) { return calls; }
EXPORT int64_t standin_calls_with_delta(void) { return calls_with_delta; }
EXPORT void* standin_last_stream(void) { return last_stream; }

static void (*get_cubin)(const char* path, const char* sha256);
static _Thread_local char* cubin;
static _Thread_local int cubin_size = -1;

EXPORT void FlashInferSetCubinCallback(void (*callback)(const char*, const char*)) { get_cubin = callback; }
EXPORT void FlashInferSetCurrentCubin(const char* binary, int size) {
  free(cubin);
  cubin = malloc(size + 1);
  memcpy(cubin, binary, size);
  cubin_size = size;
}
/* Which checksum the next kernel must have. */
EXPORT int64_t standin_wrong_checksum(void) {
  sha256 = "00";
  return 0;
}
EXPORT int64_t standin_no_checksum(void) {
  sha256 = "";
  return 0;
}

/* The place in its 32 rows of each row: what a tile's epilogue wants. */
static int64_t shuffled(int64_t row) {
  static const int to[32] = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                             4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};
  return row / 32 * 32 + to[row % 32];
}

/* What is called: its name, and how weights are stored. */
enum Form { PLAIN, MX4, MX8, NV4, FP8_TENSOR, FP8_BLOCK, INT4 };

/* One call, whichever function it is of. */
typedef struct {
  const char* name;
  enum Form form;
  int64_t routing_mode, all, K, I, first, E, method, activation;
  int finalize;
  const DlTensor *logits, *ids, *weights, *hidden, *hidden_scale, *w13, *w13_scale, *w2, *w2_scale, *delta, *b13, *b2, *alpha, *beta, *limit,
      *output, *up, *gate, *down;
  const Array *tactic, *routing, *body;
  int64_t preparation;
} Call;

/* Where the tensor cores read a group's scale. */
static int64_t swizzled(int64_t row, int64_t group, int64_t groups) {
  return (row / 128 * (groups / 4) + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4;
}

static float weight(enum Form form, const DlTensor* w, const DlTensor* scale, int64_t expert, int64_t row, int64_t k) {
  if (form == PLAIN) {
    int64_t pieces = w->shape[1], rows = w->shape[2];
    return number(w->data, w->dtype, ((expert * pieces + k / PIECE) * rows + shuffled(row)) * PIECE + k % PIECE);
  }
  const uint8_t* bytes = w->data;
  if (form == INT4) {
    int64_t pieces = w->shape[1], rows = w->shape[2], groups = pieces * PIECE_BYTES * 2 / 32, byte = k / 2;
    uint8_t both = bytes[((expert * pieces + byte / PIECE_BYTES) * rows + shuffled(row)) * PIECE_BYTES + byte % PIECE_BYTES];
    int code = k % 2 ? both >> 4 : both & 15;
    return (code < 8 ? code : code - 16) * number(scale->data, scale->dtype, expert * rows * groups + swizzled(shuffled(row), k / 32, groups));
  }
  int packed = form == MX4 || form == NV4;
  int64_t rows = w->shape[1], width = w->shape[2] * (packed ? 2 : 1);
  if (form == FP8_BLOCK) { /* rows as they are */
    return e4m3(bytes[(expert * rows + row) * width + k]) *
           ((const float*)scale->data)[(expert * (rows / BLOCK) + row / BLOCK) * (width / BLOCK) + k / BLOCK];
  }
  int64_t at = (expert * rows + shuffled(row)) * width + k;
  float value = packed ? e2m1(k % 2 ? bytes[at / 2] >> 4 : bytes[at / 2] & 15) : e4m3(bytes[at]);
  if (form == FP8_TENSOR) return value;
  int64_t group = form == NV4 ? 16 : 32, groups = width / group;
  uint8_t s = ((const uint8_t*)scale->data)[expert * rows * groups + swizzled(shuffled(row), k / group, groups)];
  return value * (form == NV4 ? e4m3(s) : ldexpf(1, s - 127));
}

/* A row of activations as the product reads it, by the form's codes. */
static void quantize(enum Form form, float* x, int64_t n) {
  if (form == FP8_TENSOR) {
    for (int64_t i = 0; i < n; i++) x[i] = e4m3_round(x[i]);
    return;
  }
  int64_t group = form == NV4 ? 16 : form == FP8_BLOCK ? BLOCK : 32;
  for (int64_t from = 0; from < n; from += group) {
    float most = 0;
    for (int64_t i = from; i < from + group; i++) most = fmaxf(most, fabsf(x[i]));
    if (most == 0) continue;
    int exponent;
    float wanted = most / 448, scale = ldexpf(1, frexpf(wanted, &exponent) == 0.5f ? exponent - 1 : exponent);
    if (form == NV4) scale = e4m3_round(most / 6);
    if (form == FP8_BLOCK) scale = wanted;
    for (int64_t i = from; i < from + group; i++) {
      x[i] = scale == 0 ? 0 : (form == NV4 ? e2m1_round(x[i] / scale) : e4m3_round(x[i] / scale)) * scale;
    }
  }
}

/* Element h of token t as the first product reads it. */
static float input(const Call* c, int64_t t, int64_t h, int64_t T, int64_t H) {
  const uint8_t* scales = c->hidden_scale ? c->hidden_scale->data : NULL;
  if (c->form == NV4) {
    uint8_t both = ((const uint8_t*)c->hidden->data)[(t * H + h) / 2];
    return e2m1(h % 2 ? both >> 4 : both & 15) * e4m3(scales[t * (H / 16) + h / 16]);
  }
  float v = number(c->hidden->data, c->hidden->dtype, t * H + h);
  if (c->form == FP8_BLOCK) return v * ((const float*)c->hidden_scale->data)[h / BLOCK * T + t];
  return scales ? v * ldexpf(1, scales[t * (H / 32) + h / 32] - 127) : v;
}

static const DType bf16_type = {4, 16, 1}, e4m3_type = {10, 8, 1}, u8 = {1, 8, 1}, i32 = {0, 32, 1}, f32 = {2, 32, 1};

static int check_weights(const Call* c, const char* what, const DlTensor* w, const DlTensor* scale, int64_t rows, int64_t k) {
  enum Form f = c->form;
  if (f == PLAIN || f == INT4) {
    int64_t piece = f == PLAIN ? PIECE : PIECE_BYTES, width = f == PLAIN ? k : k / 2;
    if (width % piece) return fail("ValueError", "%s: %s is no whole pieces wide", c->name, what);
    if (check_tensor(c->name, what, w, f == PLAIN ? bf16_type : u8, 4, c->E, width / piece, rows)) return -1;
    if (w->shape[3] != piece) return fail("ValueError", "%s: %s has pieces of %ld elements", c->name, what, (long)w->shape[3]);
    return f == PLAIN ? 0 : check_tensor(c->name, "a weights_scale", scale, bf16_type, 3, c->E, rows, k / 32);
  }
  int packed = f == MX4 || f == NV4;
  if (check_tensor(c->name, what, w, packed ? u8 : e4m3_type, 3, c->E, rows, packed ? k / 2 : k)) return -1;
  if (f == FP8_TENSOR) return 0;
  if (f == FP8_BLOCK) return check_tensor(c->name, "a weights_scale", scale, f32, 3, c->E, rows / BLOCK, k / BLOCK);
  return check_tensor(c->name, "a weights_scale", scale, packed ? e4m3_type : u8, 3, c->E, rows, k / (f == NV4 ? 16 : 32));
}

/* Hidden states and their scales. */
static int check_hidden(const Call* c, int64_t T, int64_t H) {
  const char* name = c->name;
  const DlTensor *x = c->hidden, *s = c->hidden_scale;
  enum Form f = c->form;
  int given = f == MX8 || f == NV4 || f == FP8_BLOCK;
  if (f != MX4 && given != (s != NULL)) return fail("ValueError", "%s: hidden_states_scale", name);
  int coded = s != NULL || f == FP8_TENSOR;
  if (check_tensor(name, "hidden_states", x, f == NV4 ? u8 : coded ? e4m3_type : bf16_type, 2, T, f == NV4 ? H / 2 : H, -1)) return -1;
  if (!s) return 0;
  if (f == FP8_BLOCK) return check_tensor(name, "hidden_states_scale", s, f32, 2, H / BLOCK, T, -1);
  return check_tensor(name, "hidden_states_scale", s, f == MX8 ? u8 : e4m3_type, 2, T, H / (f == NV4 ? 16 : 32), -1);
}

/* T tensor, t optional tensor, i integer, j optional integer, f optional real, b bool, A array */
static int types_are(const char* name, const Any* a, int32_t count, const char* types) {
  if (count_is(name, count, (int32_t)strlen(types))) return -1;
  for (int i = 0; i < count; i++) {
    int bad;
    switch (types[i]) {
      case 'T': bad = type_is(name, a, i, TENSOR_VIEW); break;
      case 't': bad = optional_type_is(name, a, i, TENSOR_VIEW); break;
      case 'i': bad = type_is(name, a, i, INT); break;
      case 'j': bad = optional_type_is(name, a, i, INT); break;
      case 'f': bad = optional_type_is(name, a, i, FLOAT); break;
      case 'b': bad = type_is(name, a, i, BOOL); break;
      default: bad = type_is(name, a, i, ARRAY);
    }
    if (bad) return -1;
  }
  return 0;
}

static int new_tensor(DType type, int dims, int64_t a, int64_t b, void** tensor) {
  int64_t shape[2] = {a, b};
  DlTensor prototype = {NULL, {CUDA, DEVICE_ID}, dims, type, shape, NULL, 0};
  return TVMFFIEnvTensorAlloc(&prototype, tensor);
}

static int run(const Call* c, Any* result) {
  const char* name = c->name;
  const DlTensor *hidden = c->hidden, *alpha = c->alpha, *beta = c->beta, *limit = c->limit, *delta = c->delta;
  int64_t K = c->K, I = c->I, E = c->E, first = c->first;
  calls++;
  if (delta) calls_with_delta++;
  last_stream = TVMFFIEnvGetStream(CUDA, DEVICE_ID);
  if (told_to_fail()) return -1;

  const DType half = bf16_type;
  if (c->routing_mode != SEPARATE_IDS || c->logits) {
    return fail("ValueError", "the stand-in routes nothing: routing_input_mode is %ld", (long)c->routing_mode);
  }
  if (hidden->ndim != 2) return fail("ValueError", "hidden_states must be 2D");
  int64_t T = hidden->shape[0], H = hidden->shape[1] * (c->form == NV4 ? 2 : 1);
  int coded = c->hidden_scale != NULL || c->form == FP8_TENSOR;
  int packs = c->form == INT4; /* ids come with their weights, which are written */
  if (check_hidden(c, T, H) || check_tensor(name, "expert_indices", c->ids, i32, 2, T, K, -1) ||
      check_tensor(name, "expert_weights", c->weights, packs ? half : f32, 2, T, K, -1) ||
      check_tensor(name, "output", c->output, half, 2, T, H, -1) || check_weights(c, "gemm1_weights", c->w13, c->w13_scale, 2 * I, H) ||
      check_weights(c, "gemm2_weights", c->w2, c->w2_scale, H, I) ||
      (c->b13 && check_tensor(name, "gemm1_bias", c->b13, f32, 2, E, 2 * I, -1)) ||
      (c->b2 && check_tensor(name, "gemm2_bias", c->b2, f32, 2, E, H, -1)) ||
      (delta && check_tensor(name, "gemm1_lora_delta", delta, half, 3, T, K, 2 * I))) {
    return -1;
  }
  if (delta && c->b13) return fail("ValueError", "gemm1_bias and gemm1_lora_delta are mutually exclusive");
  if (c->up && (alpha || beta || limit)) return fail("ValueError", "the stand-in scales no parameters of the activation");
  if (delta && coded) return fail("ValueError", "the stand-in gives no coded activations back");
  const DlTensor* parameters[6] = {alpha, beta, limit, c->up, c->gate, c->down};
  for (int i = 0; i < 6; i++) {
    if (i >= 3 && (parameters[i] != NULL) != (c->form == NV4 || c->form == FP8_TENSOR)) {
      return fail("ValueError", "%s: scales of an expert", name);
    }
    if (parameters[i] && check_tensor(name, "a number of each expert", parameters[i], f32, 1, E, -1, -1)) return -1;
  }
  if (I % 128 || H % 128) return fail("InternalError", "no valid config for hidden_size %ld and intermediate_size %ld", (long)H, (long)I);
  if (first < 0 || first + E > c->all || K < 1 || K > c->all) return fail("InternalError", "expert offset and count must be within valid range");
  if (c->activation != SWIGLU) return fail("InternalError", "activation %ld", (long)c->activation);
  if (c->method < 0 || c->method > 9) return fail("InternalError", "routing_method_type %ld", (long)c->method);
  if (c->tactic->size != 2) return fail("InternalError", "Invalid tactic, expected to be [tile_N, config], but got array of size %ld", (long)c->tactic->size);
  if (c->routing->size || c->body->size || c->preparation) return fail("InternalError", "no body preparation here");
  if (!get_cubin) return fail("RuntimeError", "FlashInferSetCubinCallback not set");
  get_cubin("kernels/bf16.cubin", sha256);
  if (cubin_size <= 0) return fail("RuntimeError", "CUDA_ERROR_INVALID_IMAGE");

  /* Rows in the order of the experts, each expert's in whole tiles; what nobody writes is NaN. */
  int64_t *counts = calloc(E + 1, sizeof *counts), rows = 0;
  int32_t* place = malloc(sizeof *place * (T * K + 1));
  int32_t* id = malloc(sizeof *id * (T * K + 1));
  for (int64_t p = 0; p < T * K; p++) {
    uint32_t one = ((const uint32_t*)c->ids->data)[p];
    id[p] = packs ? (int32_t)one >> 16 : (int32_t)one;
    if (packs) ((uint16_t*)c->weights->data)[p] = (uint16_t)one;
  }
  for (int64_t e = 0; e < E; e++) {
    counts[e] = rows;
    int64_t own = 0;
    for (int64_t p = 0; p < T * K; p++) {
      if (id[p] - first == e) place[p] = (int32_t)(rows + own++);
    }
    rows += (own + TILE - 1) / TILE * TILE;
  }
  for (int64_t p = 0; p < T * K; p++) {
    if (id[p] < first || id[p] >= first + E) place[p] = -1;
  }
  free(counts);
  void *act = NULL, *product = NULL, *map = NULL;
  if (new_tensor(half, 2, rows, I, &act) || new_tensor(half, 2, rows, H, &product) || new_tensor(i32, 1, T * K, 0, &map)) return -1;
  DlTensor *x = &((Tensor*)act)->tensor, *y = &((Tensor*)product)->tensor;
  memset(x->data, 0xFF, rows * I * 2);
  memset(y->data, 0xFF, rows * H * 2);
  memcpy(((Tensor*)map)->tensor.data, place, sizeof *place * T * K);
  float *in = malloc(sizeof(float) * H), *v = malloc(sizeof(float) * 2 * I), *mid = malloc(sizeof(float) * I); /* v: up, then gate */
  for (int64_t p = 0; p < T * K; p++) {
    if (place[p] < 0) continue;
    int64_t e = id[p] - first, t = p / K;
    for (int64_t h = 0; h < H; h++) in[h] = input(c, t, h, T, H);
    for (int64_t r = 0; r < 2 * I; r++) { /* rows of the two alternate, deltas and blocks' rows stand in halves */
      int64_t b = r / I, i = r % I, row = c->form == FP8_BLOCK ? r : 2 * i + b;
      v[r] = 0;
      for (int64_t h = 0; h < H; h++) v[r] += in[h] == 0 ? 0 : in[h] * weight(c->form, c->w13, c->w13_scale, e, row, h);
      if (c->b13) v[r] += ((float*)c->b13->data)[e * 2 * I + shuffled(row)];
      if (delta) v[r] += number(delta->data, half, p * 2 * I + r);
    }
    if (c->form == FP8_BLOCK) quantize(c->form, v, 2 * I); /* its activation is a kernel of its own */
    for (int64_t i = 0; i < I; i++) {
      float top = limit ? ((float*)limit->data)[e] : INFINITY;
      float gate = fminf(v[I + i] * (c->gate ? ((float*)c->gate->data)[e] : 1), top), up = fmaxf(fminf(v[i], top), -top);
      float s = sigmoid((alpha ? ((float*)alpha->data)[e] : 1) * gate);
      mid[i] = gate * s * (up + (beta ? ((float*)beta->data)[e] : 0)) * (c->up ? ((float*)c->up->data)[e] : 1);
      store(x->data, half, place[p] * I + i, mid[i]);
      if (!coded) mid[i] = number(x->data, half, place[p] * I + i);
    }
    if (coded) quantize(c->form, mid, I);
    for (int64_t h = 0; h < H; h++) {
      float sum = 0;
      for (int64_t i = 0; i < I; i++) sum += mid[i] == 0 ? 0 : mid[i] * weight(c->form, c->w2, c->w2_scale, e, h, i);
      if (c->down) sum *= ((float*)c->down->data)[e];
      if (c->b2) sum += ((float*)c->b2->data)[e * H + shuffled(h)];
      store(y->data, half, place[p] * H + h, sum);
    }
  }
  free(in);
  free(v);
  free(mid);
  free(id);
  Any answers[4] = {0};
  int n = 0;
  if (c->finalize) {
    for (int64_t t = 0; t < T; t++) {
      for (int64_t h = 0; h < H; h++) {
        float sum = 0;
        for (int64_t k = 0; k < K; k++) {
          int32_t at = place[t * K + k];
          if (at >= 0) sum += number(c->weights->data, c->weights->dtype, t * K + k) * number(y->data, half, at * H + h);
        }
        store(c->output->data, half, t * H + h, sum);
      }
    }
  } else {
    answers[n].type_index = TENSOR, answers[n++].p = product;
    n++; /* the weights, which were given */
    answers[n].type_index = TENSOR, answers[n++].p = map;
    if (delta) answers[n].type_index = TENSOR, answers[n++].p = act;
  }
  free(place);
  result->type_index = ARRAY;
  result->p = standin_array(answers, n);
  TVMFFIObjectDecRef(act);
  TVMFFIObjectDecRef(product);
  TVMFFIObjectDecRef(map);
  return 0;
}

EXPORT int __tvm_ffi_trtllm_bf16_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "trtllm_bf16_moe";
  if (types_are(name, a, count, "ittTTTTTttttTiijjiiifibibbAibtAAb")) return -1;
  if (a[22].i == 0 || a[23].i != BLOCK_MAJOR_K) return fail("InternalError", "BF16 Moe: weight_layout must be BlockMajorK, shuffled");
  Call c = {.name = name, .form = PLAIN, .routing_mode = a[0].i, .logits = view(a, 1), .ids = a[3].p, .weights = a[4].p, .hidden = a[5].p,
            .w13 = a[6].p, .w2 = a[7].p, .delta = view(a, 8), .alpha = view(a, 9), .beta = view(a, 10), .limit = view(a, 11),
            .output = a[12].p, .all = a[13].i, .K = a[14].i, .I = a[17].i, .first = a[18].i, .E = a[19].i, .method = a[21].i,
            .finalize = a[24].i != 0, .tactic = a[26].p, .activation = a[27].i, .routing = a[30].p, .body = a[31].p, .preparation = a[32].i};
  return run(&c, result);
}

EXPORT int __tvm_ffi_trtllm_fp4_block_scale_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "trtllm_fp4_block_scale_moe";
  if (types_are(name, a, count, "itTTtTtTTtttttTTtttttiijjjiiifibbiTAbtAAb")) return -1;
  if (view(a, 20)) return fail("ValueError", "%s: the stand-in has no scales of tokens", name);
  /* As the real one tells the two apart: by how many weights share a scale. */
  const DlTensor *w = a[7].p, *s = a[8].p;
  enum Form form = w->ndim == 3 && s->ndim == 3 && w->shape[2] * 2 / s->shape[2] > 16 ? MX4 : NV4;
  Call c = {.name = name, .form = form, .routing_mode = a[0].i, .logits = view(a, 1), .ids = a[2].p, .weights = a[3].p, .hidden = a[5].p,
            .hidden_scale = view(a, 6), .w13 = w, .w13_scale = s, .b13 = view(a, 9), .delta = view(a, 10), .alpha = view(a, 11),
            .beta = view(a, 12), .limit = view(a, 13), .w2 = a[14].p, .w2_scale = a[15].p, .b2 = view(a, 16), .up = view(a, 17),
            .gate = view(a, 18), .down = view(a, 19), .all = a[21].i, .K = a[22].i, .I = a[26].i, .first = a[27].i, .E = a[28].i,
            .method = a[30].i, .finalize = a[31].i != 0, .activation = a[33].i, .output = a[34].p, .tactic = a[35].p, .routing = a[38].p,
            .body = a[39].p, .preparation = a[40].i};
  return run(&c, result);
}

EXPORT int __tvm_ffi_trtllm_fp8_block_scale_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "trtllm_fp8_block_scale_moe";
  if (types_are(name, a, count, "itTTtTTTTttttTTTiijjjiiifibibbAiibtAAb")) return -1;
  if (a[31].i != MX_FP8 && a[31].i != FP8_BLOCKS) return fail("NotImplementedError", "FP8 of kind %ld", (long)a[31].i);
  int blocks = a[31].i == FP8_BLOCKS;
  if ((a[26].i == 0) != blocks || a[27].i != MAJOR_K) return fail("InternalError", "weight_layout must be 0, MxFp8 shuffled, blocks not.");
  Call c = {.name = name, .form = blocks ? FP8_BLOCK : MX8, .routing_mode = a[0].i, .logits = view(a, 1), .ids = a[2].p,
            .weights = a[3].p, .hidden = a[5].p, .hidden_scale = a[6].p, .w13 = a[7].p, .w13_scale = a[8].p, .delta = view(a, 9),
            .alpha = view(a, 10), .beta = view(a, 11), .limit = view(a, 12), .w2 = a[13].p, .w2_scale = a[14].p, .output = a[15].p,
            .all = a[16].i, .K = a[17].i, .I = a[21].i, .first = a[22].i, .E = a[23].i, .method = a[25].i, .finalize = a[28].i != 0,
            .tactic = a[30].p, .activation = a[32].i, .routing = a[35].p, .body = a[36].p, .preparation = a[37].i};
  return run(&c, result);
}

EXPORT int __tvm_ffi_trtllm_fp8_per_tensor_scale_routed_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "trtllm_fp8_per_tensor_scale_routed_moe";
  if (types_are(name, a, count, "iTTtTTTTTTTiijjiiifbibbAibtAAb")) return -1;
  if (a[19].i) return fail("ValueError", "%s: the stand-in weights no input", name);
  Call c = {.name = name, .form = FP8_TENSOR, .routing_mode = a[0].i, .ids = a[1].p, .weights = a[2].p, .hidden = a[4].p, .w13 = a[5].p,
            .up = a[6].p, .gate = a[7].p, .w2 = a[8].p, .down = a[9].p, .output = a[10].p, .all = a[11].i, .K = a[12].i, .I = a[15].i,
            .first = a[16].i, .E = a[17].i, .method = a[20].i, .finalize = a[21].i != 0, .tactic = a[23].p, .activation = a[24].i,
            .routing = a[27].p, .body = a[28].p, .preparation = a[29].i};
  return run(&c, result);
}

EXPORT int __tvm_ffi_trtllm_mxint4_block_scale_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "trtllm_mxint4_block_scale_moe";
  if (types_are(name, a, count, "ttTTTTTttttTTiijjiiifibbTAbtAAb")) return -1;
  Call c = {.name = name, .form = INT4, .routing_mode = SEPARATE_IDS, .logits = view(a, 0), .ids = a[2].p, .weights = a[3].p,
            .hidden = a[4].p, .w13 = a[5].p, .w13_scale = a[6].p, .alpha = view(a, 7), .beta = view(a, 8), .limit = view(a, 9),
            .delta = view(a, 10), .w2 = a[11].p, .w2_scale = a[12].p, .all = a[13].i, .K = a[14].i, .I = a[17].i, .first = a[18].i,
            .E = a[19].i, .method = a[21].i, .finalize = a[22].i != 0, .output = a[24].p, .tactic = a[25].p, .activation = SWIGLU,
            .routing = a[28].p, .body = a[29].p, .preparation = a[30].i};
  return run(&c, result);
}
