/*
 * A stand-in for FlashInfer's fused_moe_trtllm_sm100 module: `trtllm_bf16_moe` with its argument list, its checks, its order of weights
 * and of rows, and its arithmetic, slowly and on the host. Like the real one it holds no kernels and asks its host for one.
 */
#include "checks.h"
#include "numbers.h"
#include "standin.h"

enum { ARGUMENTS = 33, TILE = 8, SEPARATE_IDS = 2, SWIGLU = 3, BLOCK_MAJOR_K = 2, PIECE = 64 };

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

static float weight(const DlTensor* w, int64_t expert, int64_t row, int64_t k) {
  int64_t pieces = w->shape[1], rows = w->shape[2];
  return number(w->data, w->dtype, ((expert * pieces + k / PIECE) * rows + shuffled(row)) * PIECE + k % PIECE);
}

static int check_weights(const char* what, const DlTensor* w, int64_t experts, int64_t rows, int64_t k) {
  const DType bf16_type = {4, 16, 1};
  if (check_tensor("trtllm_bf16_moe", what, w, bf16_type, 4, experts, k / PIECE, rows)) return -1;
  if (w->shape[3] != PIECE) return fail("ValueError", "trtllm_bf16_moe: %s has pieces of %ld elements", what, (long)w->shape[3]);
  return 0;
}

static int new_tensor(DType type, int dims, int64_t a, int64_t b, void** tensor) {
  int64_t shape[2] = {a, b};
  DlTensor prototype = {NULL, {CUDA, DEVICE_ID}, dims, type, shape, NULL, 0};
  return TVMFFIEnvTensorAlloc(&prototype, tensor);
}

EXPORT int __tvm_ffi_trtllm_bf16_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "trtllm_bf16_moe";
  if (count_is(name, count, ARGUMENTS)) return -1;
  /* T tensor, t optional tensor, i integer, j optional integer, f optional real, b bool, A array */
  static const char types[] = "ittTTTTTttttTiijjiiifibibbAibtAAb";
  for (int i = 0; i < ARGUMENTS; i++) {
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
  const DlTensor *logits = view(a, 1), *ids = a[3].p, *weights = a[4].p, *hidden = a[5].p, *w13 = a[6].p, *w2 = a[7].p;
  const DlTensor *delta = view(a, 8), *alpha = view(a, 9), *beta = view(a, 10), *limit = view(a, 11), *output = a[12].p;
  int64_t all = a[13].i, K = a[14].i, I = a[17].i, first = a[18].i, E = a[19].i;
  int finalize = a[24].i != 0;
  Array* tactic = a[26].p;
  calls++;
  if (delta) calls_with_delta++;
  last_stream = TVMFFIEnvGetStream(CUDA, DEVICE_ID);
  if (told_to_fail()) return -1;

  const DType i32 = {0, 32, 1}, f32 = {2, 32, 1}, half = {4, 16, 1};
  if (a[0].i != SEPARATE_IDS || logits) return fail("ValueError", "the stand-in routes nothing: routing_input_mode is %ld", (long)a[0].i);
  if (hidden->ndim != 2) return fail("ValueError", "hidden_states must be 2D");
  int64_t T = hidden->shape[0], H = hidden->shape[1];
  if (check_tensor(name, "hidden_states", hidden, half, 2, T, H, -1) || check_tensor(name, "expert_indices", ids, i32, 2, T, K, -1) ||
      check_tensor(name, "expert_weights", weights, f32, 2, T, K, -1) || check_tensor(name, "output", output, half, 2, T, H, -1) ||
      check_weights("gemm1_weights", w13, E, 2 * I, H) || check_weights("gemm2_weights", w2, E, H, I) ||
      (delta && check_tensor(name, "gemm1_lora_delta", delta, half, 3, T, K, 2 * I))) {
    return -1;
  }
  const DlTensor* parameters[3] = {alpha, beta, limit};
  for (int i = 0; i < 3; i++) {
    if (parameters[i] && check_tensor(name, "an activation parameter", parameters[i], f32, 1, E, -1, -1)) return -1;
  }
  if (I % 128 || H % 128) return fail("InternalError", "no valid config for hidden_size %ld and intermediate_size %ld", (long)H, (long)I);
  if (first < 0 || first + E > all || K < 1 || K > all) return fail("InternalError", "expert offset and count must be within valid range");
  if (a[22].i == 0 || a[23].i != BLOCK_MAJOR_K) return fail("InternalError", "BF16 Moe: weight_layout must be BlockMajorK, shuffled");
  if (a[27].i != SWIGLU) return fail("InternalError", "activation %ld", (long)a[27].i);
  if (a[21].i < 0 || a[21].i > 9) return fail("InternalError", "routing_method_type %ld", (long)a[21].i);
  if (tactic->size != 2) return fail("InternalError", "Invalid tactic, expected to be [tile_N, config], but got array of size %ld", (long)tactic->size);
  if (((Array*)a[30].p)->size || ((Array*)a[31].p)->size || a[32].i) return fail("InternalError", "no body preparation here");
  if (!get_cubin) return fail("RuntimeError", "FlashInferSetCubinCallback not set");
  get_cubin("kernels/bf16.cubin", sha256);
  if (cubin_size <= 0) return fail("RuntimeError", "CUDA_ERROR_INVALID_IMAGE");

  /* Rows in the order of the experts, each expert's in whole tiles; what nobody writes is NaN. */
  int64_t *counts = calloc(E + 1, sizeof *counts), rows = 0;
  int32_t* place = malloc(sizeof *place * (T * K + 1));
  const int32_t* id = ids->data;
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
  float* in = malloc(sizeof(float) * (H + I));
  for (int64_t p = 0; p < T * K; p++) {
    if (place[p] < 0) continue;
    int64_t e = id[p] - first, t = p / K;
    for (int64_t h = 0; h < H; h++) in[h] = number(hidden->data, half, t * H + h);
    for (int64_t i = 0; i < I; i++) {
      float v[2] = {0, 0}; /* up, gate: rows of the two alternate, deltas stand in halves */
      for (int b = 0; b < 2; b++) {
        for (int64_t h = 0; h < H; h++) v[b] += in[h] == 0 ? 0 : in[h] * weight(w13, e, 2 * i + b, h);
        if (delta) v[b] += number(delta->data, half, (p * 2 + b) * I + i);
      }
      float top = limit ? ((float*)limit->data)[e] : INFINITY;
      float gate = fminf(v[1], top), up = fmaxf(fminf(v[0], top), -top);
      float s = sigmoid((alpha ? ((float*)alpha->data)[e] : 1) * gate);
      store(x->data, half, place[p] * I + i, gate * s * (up + (beta ? ((float*)beta->data)[e] : 0)));
    }
    for (int64_t i = 0; i < I; i++) in[i] = number(x->data, half, place[p] * I + i);
    for (int64_t h = 0; h < H; h++) {
      float v = 0;
      for (int64_t i = 0; i < I; i++) v += in[i] == 0 ? 0 : in[i] * weight(w2, e, h, i);
      store(y->data, half, place[p] * H + h, v);
    }
  }
  free(in);
  Any answers[4] = {0};
  int n = 0;
  if (finalize) {
    for (int64_t t = 0; t < T; t++) {
      for (int64_t h = 0; h < H; h++) {
        float sum = 0;
        for (int64_t k = 0; k < K; k++) {
          int32_t at = place[t * K + k];
          if (at >= 0) sum += ((float*)weights->data)[t * K + k] * number(y->data, half, at * H + h);
        }
        store(output->data, half, t * H + h, sum);
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
