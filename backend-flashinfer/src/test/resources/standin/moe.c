/*
 * A stand-in for FlashInfer's fused_moe_<sm> module: its exports, its argument lists, its checks, and its arithmetic, slowly and on
 * the host. Of the argument lists RUN_MOE_ARGS (24, 25, 26, 28) and INIT_ARGS (7, 8, 9) are built.
 */
#include "checks.h"
#include "numbers.h"
#include "standin.h"

#ifndef RUN_MOE_ARGS
#define RUN_MOE_ARGS 28
#endif
#ifndef INIT_ARGS
#define INIT_ARGS 9
#endif

/* For the tests: what was seen, and what is to go wrong. */
static _Atomic int64_t calls, bytes_allocated;
static _Atomic(void*) last_stream;
static int64_t last_tactics[2], last_fused;

EXPORT int64_t standin_calls(void) { return calls; }
EXPORT void* standin_last_stream(void) { return last_stream; }
EXPORT int64_t standin_bytes_allocated(void) { return bytes_allocated; }
EXPORT int64_t standin_last_fused(void) { return last_fused; }
EXPORT int64_t standin_last_tactics(void) { return last_tactics[0] * 1000 + last_tactics[1]; }
/* The modes that `init` can be asked for. */
enum Mode { PLAIN, FP8_TENSOR, FP8_BLOCK, MXFP4, MXFP4_MXFP8, MXFP8, NVFP4 };

/* Where kernels are compiled from; FP8_BLOCK has none without. */
static char include_dir[1024];

typedef struct {
  Module module;
  enum Mode mode;
  DType activation, weight, output;
  int fused_finalize;
  void* profile_workspace;
} Runner;

enum { GEMM1_TACTICS = 5, GEMM2_TACTICS = 4 };
/* The K tile of each tactic, in elements; one that does not divide K reads past the matrix on the real card. */
static const int64_t TILE_K[GEMM1_TACTICS + GEMM2_TACTICS] = {64, 128, 256, 64, 512, 64, 128, 256, 64};

static int64_t workspace_bytes(int64_t rows, int64_t hidden, int64_t inter, int64_t experts, int64_t top_k) {
  return 128 * ((rows * top_k * (hidden + 3 * inter) * 4 + experts * 64) / 128 + 1);
}

static int allocate(int64_t bytes, void** tensor) {
  int64_t shape[1] = {bytes};
  DlTensor prototype = {NULL, {CUDA, DEVICE_ID}, 1, {0, 8, 1}, shape, NULL, 0};
  if (TVMFFIEnvTensorAlloc(&prototype, tensor)) return -1;
  bytes_allocated += bytes;
  return 0;
}

/* The nibbles' order after `interleave`: any will do, as long as `run_moe` knows it. The real one differs. */
static int64_t interleaved(int64_t i, int64_t k_half) { return (i / k_half) * k_half + (i % k_half ^ 1); }

static float activate(int64_t kind, float gate, float up, float alpha, float beta, float limit) {
  switch (kind) {
    case 3: return silu(gate) * up;
    case 4: return gelu(gate) * up;
    case 5: {
      float g = fminf(gate, limit);
      return g * sigmoid(alpha * g) * (fmaxf(fminf(up, limit), -limit) + beta);
    }
    case 7: return fminf(silu(gate), limit) * fmaxf(fminf(up, limit), -limit);
    case 8: return gelu_tanh(gate) * up;
    case 0: return gelu(up);
    case 2: return silu(up);
    case 6: return up > 0 ? up * up : 0;
    default: return NAN;
  }
}

static int is_gated(int64_t kind) { return kind == 3 || kind == 4 || kind == 5 || kind == 7 || kind == 8; }

/* Where the tensor cores read a group's scale: 128 rows and 4 groups are 512 bytes, four rows 32 apart side by side. */
static int64_t swizzled(int64_t row, int64_t group, int64_t groups) {
  return (row / 128 * (groups / 4) + group / 4) * 512 + row % 32 * 16 + row % 128 / 32 * 4 + group % 4;
}

static int group_size(enum Mode mode) { return mode == NVFP4 ? 16 : 32; }
static int is_grouped(enum Mode mode) { return mode == MXFP4_MXFP8 || mode == MXFP8 || mode == NVFP4; }

/* Weight [row, k] of an expert's matrix, with its scale. `scales` is folded as the mixed GEMM wants it, or in the tensor cores' order. */
static float weight_at(const Runner* r, const DlTensor* w, const DlTensor* scales, int64_t expert, int64_t row, int64_t k, int64_t rows,
                       int64_t width) {
  int64_t at = (expert * rows + row) * width + k;
  if (is_grouped(r->mode)) {
    int64_t groups = width / group_size(r->mode);
    uint8_t s = ((const uint8_t*)scales->data)[expert * rows * groups + swizzled(row, k / group_size(r->mode), groups)];
    float scale = r->mode == NVFP4 ? e4m3(s) : ldexpf(1, s - 127);
    uint8_t two = ((const uint8_t*)w->data)[r->mode == MXFP8 ? at : at / 2];
    return (r->mode == MXFP8 ? e4m3(two) : e2m1(k % 2 ? two >> 4 : two & 15)) * scale;
  }
  if (r->mode == FP8_BLOCK) {
    return number(w->data, w->dtype, at) * ((const float*)scales->data)[(expert * (rows / 128) + row / 128) * (width / 128) + k / 128];
  }
  if (r->mode != MXFP4) return number(w->data, w->dtype, at);
  int64_t half = width / 2;
  const uint8_t* bytes = w->data;
  uint8_t two = bytes[interleaved((expert * rows + row) * half + k / 2, half)];
  int64_t blocks = width / 128, group = k / 32;
  /* [E, rows / 64, K / 128, 16, 4 slices of 16 rows x 4 groups of 32] */
  const uint8_t* s = scales->data;
  int64_t folded = (((expert * (rows / 64) + row / 64) * blocks + group / 4) * 16 + row % 16) * 16 + (row % 64) / 16 * 4 + group % 4;
  return e2m1(k % 2 ? two >> 4 : two & 15) * ldexpf(1, s[folded] - 127);
}

/* What the module makes of a row of activations before a product: groups with a scale each, or nothing. */
static void quantize(const Runner* r, float* x, int64_t n, float global) {
  int64_t group = r->mode == FP8_BLOCK ? 128 : group_size(r->mode);
  if (r->mode != FP8_BLOCK && !is_grouped(r->mode)) return;
  for (int64_t from = 0; from < n; from += group) {
    float most = 0;
    for (int64_t i = from; i < from + group; i++) most = fmaxf(most, fabsf(x[i]));
    float scale = most / 448;
    if (r->mode == NVFP4) {
      scale = e4m3_round(most / 6 * global) / global;
    } else if (r->mode != FP8_BLOCK && scale > 0) {
      int exponent;
      scale = ldexpf(1, frexpf(scale, &exponent) == 0.5f ? exponent - 1 : exponent);
    }
    for (int64_t i = from; i < from + group; i++) {
      x[i] = scale == 0 ? 0 : (r->mode == NVFP4 ? e2m1_round(x[i] / scale) : e4m3_round(x[i] / scale)) * scale;
    }
  }
}

static int run_moe(void* self, const Any* a, int32_t count, Any* result) {
  (void)result;
  const char* name = "run_moe";
  Runner* r = self;
  if (count_is(name, count, RUN_MOE_ARGS)) return -1;
  int n = 0;
  const int required[] = {0, 1, 2, 4, 6};
  for (size_t i = 0; i < sizeof required / sizeof *required; i++) {
    if (type_is(name, a, required[i], TENSOR_VIEW)) return -1;
  }
  const DlTensor *output = a[n++].p, *input = a[n++].p, *ids = a[n++].p;
  if (optional_type_is(name, a, n, TENSOR_VIEW)) return -1;
  const DlTensor* weights = view(a, n++);
  const DlTensor* w1 = a[n++].p;
  if (optional_type_is(name, a, n, TENSOR_VIEW)) return -1;
  const DlTensor* b1 = view(a, n++);
  const DlTensor* w2 = a[n++].p;
  if (optional_type_is(name, a, n, TENSOR_VIEW)) return -1;
  const DlTensor* b2 = view(a, n++);
  if (optional_type_is(name, a, n, ARRAY)) return -1;
  Array* scales = a[n].type_index == NONE ? NULL : a[n].p;
  n++;
  const DlTensor* optional[6] = {0}; /* input_sf, alpha, beta, limit, situ_beta, situ_linear_beta */
  int optionals = RUN_MOE_ARGS >= 28 ? 6 : 4;
  for (int i = 0; i < optionals; i++) {
    if (optional_type_is(name, a, n, TENSOR_VIEW)) return -1;
    optional[i] = view(a, n++);
  }
  int swizzled_input = 1;
  if (RUN_MOE_ARGS >= 25) {
    if (type_is(name, a, n, BOOL)) return -1;
    swizzled_input = a[n++].i != 0;
  }
  int64_t parallel[6]; /* tp_size, tp_rank, ep_size, ep_rank, cluster_size, cluster_rank */
  for (int i = 0; i < 6; i++) {
    if (type_is(name, a, n, INT)) return -1;
    parallel[i] = a[n++].i;
  }
  if (type_is(name, a, n++, BOOL) || type_is(name, a, n++, BOOL)) return -1; /* enable_alltoall, min_latency */
  if (optional_type_is(name, a, n, ARRAY)) return -1;
  Array* profiles = a[n].type_index == NONE ? NULL : a[n].p;
  n++;
  if (type_is(name, a, n++, BOOL)) return -1; /* enable_pdl */
  if (type_is(name, a, n, INT)) return -1;
  int64_t kind = a[n++].i;
  const DlTensor* workspace = NULL;
  if (RUN_MOE_ARGS >= 26) {
    if (optional_type_is(name, a, n, TENSOR_VIEW)) return -1;
    workspace = view(a, n++);
  }
  calls++;
  last_stream = TVMFFIEnvGetStream(CUDA, DEVICE_ID);
  if (told_to_fail()) return -1;

  if (parallel[4] != 1 || parallel[5] != 0) return fail("InternalError", "smart_router is supported in min_latency mode");
  if (w1->ndim != 3 || w2->ndim != 3 || input->ndim != 2 || ids->ndim != 2) return fail("ValueError", "a tensor of the wrong rank");
  int64_t pack = r->mode == MXFP4 ? 2 : r->mode == MXFP4_MXFP8 || r->mode == NVFP4 ? 16 : 1, gated = is_gated(kind);
  int64_t T = input->shape[0], K = ids->shape[1], E = w2->shape[0], H = w2->shape[1], I = w2->shape[2] * pack;
  int64_t rows = gated ? 2 * I : I;
  const DType i32 = {0, 32, 1}, f32 = {2, 32, 1}, u8 = {1, 8, 1};
  if (check_tensor(name, "input", input, r->activation, 2, T, H, -1) || check_tensor(name, "output", output, r->output, 2, T, H, -1) ||
      check_tensor(name, "token_selected_experts", ids, i32, 2, T, K, -1) ||
      (weights && check_tensor(name, "token_final_scales", weights, f32, 2, T, K, -1)) ||
      check_tensor(name, "fc1_expert_weights", w1, r->weight, 3, E, rows, H / pack) ||
      check_tensor(name, "fc2_expert_weights", w2, r->weight, 3, E, H, I / pack)) {
    return -1;
  }
  if (!b1 != !b2) return fail("ValueError", "one bias without the other");
  if (b1 && (check_tensor(name, "fc1_expert_biases", b1, r->output, 2, E, rows, -1) ||
             check_tensor(name, "fc2_expert_biases", b2, r->output, 2, E, H, -1))) {
    return -1;
  }
  int64_t align = r->mode == MXFP4 || r->mode == MXFP4_MXFP8 ? 128 : 128 / (r->weight.bits < r->activation.bits ? r->weight.bits : r->activation.bits);
  if (H % align || I % align) {
    return fail("InternalError", "hidden_size %ld and inter_size %ld must be divisible by %ld for weights", (long)H, (long)I, (long)align);
  }
  for (int i = 1; i < optionals; i++) {
    if (optional[i] && check_tensor(name, "an activation parameter", optional[i], f32, 1, E, -1, -1)) return -1;
  }
  static const int64_t scale_counts[] = {[PLAIN] = 0, [FP8_TENSOR] = 4, [FP8_BLOCK] = 2, [MXFP4] = 2, [MXFP4_MXFP8] = 4, [MXFP8] = 4, [NVFP4] = 6};
  int64_t wanted_scales = scale_counts[r->mode];
  if (wanted_scales && (!scales || scales->size != wanted_scales)) {
    return fail("InternalError", "Expecting %ld quant scales", (long)wanted_scales);
  }
  const DlTensor* s[6] = {0};
  for (int64_t i = 0; i < wanted_scales; i++) {
    if (scales->items[i].type_index != TENSOR) return fail("TypeError", "quant scale %ld is no Tensor", (long)i);
    s[i] = &((Tensor*)scales->items[i].p)->tensor;
  }
  if (r->mode == FP8_TENSOR && (check_tensor(name, "fc1_dequant", s[0], f32, 1, E, -1, -1) ||
                                (s[1]->ndim ? check_tensor(name, "fc2_quant", s[1], f32, 1, E, -1, -1)
                                            : check_tensor(name, "fc2_quant", s[1], f32, 0, -1, -1, -1)) ||
                                check_tensor(name, "fc2_dequant", s[2], f32, 1, E, -1, -1) ||
                                check_tensor(name, "fc1_input_dequant", s[3], f32, 0, -1, -1, -1))) {
    return -1;
  }
  if (r->mode == MXFP4) {
    for (int i = 0; i < 2; i++) {
      int64_t m = i ? H : rows, k = i ? I : H;
      const DlTensor* t = s[i];
      if (t->ndim != 5 || t->shape[0] != E || t->shape[1] != m / 64 || t->shape[2] != k / 128 || t->shape[3] != 16 || t->shape[4] != 16 ||
          !same(t->dtype, u8)) {
        return fail("ValueError", "folded scales of fc%d must be u8 [%ld, %ld, %ld, 16, 16]", i + 1, (long)E, (long)m / 64, (long)k / 128);
      }
    }
  }
  if (r->mode == FP8_BLOCK) {
    if (!include_dir[0]) return fail("RuntimeError", "NVRTC compilation failed");
    if (check_tensor(name, "fc1_scales", s[0], f32, 3, E, rows / 128, H / 128) || check_tensor(name, "fc2_scales", s[1], f32, 3, E, H / 128, I / 128)) {
      return -1;
    }
  }
  const DlTensor *act_global[2] = {NULL, NULL}, *weight_global[2] = {NULL, NULL};
  if (is_grouped(r->mode)) {
    int n = 0;
    for (int p = 0; p < 2; p++) {
      int64_t m = p ? H : rows, k = p ? I : H;
      if (r->mode == NVFP4) act_global[p] = s[n++];
      const DlTensor* block = s[n++];
      weight_global[p] = s[n++];
      if ((act_global[p] && check_tensor(name, "act_global", act_global[p], f32, act_global[p]->ndim ? 1 : 0, E, -1, -1)) ||
          check_tensor(name, "weight_block", block, i32, 3, E, m, k / group_size(r->mode) / 4) ||
          check_tensor(name, "global", weight_global[p], f32, 1, E, -1, -1)) {
        return -1;
      }
      s[p] = block; /* the first one's place is free again */
    }
  }
  const DlTensor* input_scales = optional[0];
  if ((r->mode == MXFP4_MXFP8 || r->mode == MXFP8) != (input_scales != NULL)) {
    return fail("InternalError", "input_sf must be provided when use_mxfp8_act_scaling=True, and only then");
  }
  if (input_scales && (check_tensor(name, "input_sf", input_scales, u8, 2, T, H / 32, -1) || swizzled_input)) {
    return swizzled_input ? fail("ValueError", "the stand-in reads scales row by row") : -1;
  }
  int64_t tactic[2] = {-1, -1};
  if (profiles) {
    if (profiles->size != 2) return fail("InternalError", "Expecting 2 profile ids");
    for (int i = 0; i < 2; i++) {
      if (profiles->items[i].type_index != INT) return fail("TypeError", "profile id %d is no integer", i);
      tactic[i] = profiles->items[i].i;
    }
    if (tactic[0] != -1 && (tactic[0] < 0 || tactic[0] >= GEMM1_TACTICS)) return fail("InternalError", "Invalid gemm1 profile id: %ld", (long)tactic[0]);
    if (tactic[1] != -1 && (tactic[1] < GEMM1_TACTICS || tactic[1] >= GEMM1_TACTICS + GEMM2_TACTICS)) {
      return fail("InternalError", "Invalid gemm2 profile id: %ld", (long)tactic[1]);
    }
  }
  last_fused = r->fused_finalize;
  last_tactics[0] = tactic[0];
  last_tactics[1] = tactic[1];
  for (int i = 0; i < 2; i++) {
    if (r->mode == MXFP4 && tactic[i] != -1 && (i ? I : H) % TILE_K[tactic[i]]) {
      return fail("InternalError", "an illegal memory access was encountered"); /* and the context would be gone */
    }
  }
  int64_t need = workspace_bytes(T, H, I, E * parallel[2], K);
  void* own = NULL;
  if (workspace) {
    if (workspace->ndim != 1 || !(same(workspace->dtype, u8) || workspace->dtype.code == 0) || workspace->dtype.bits != 8) {
      return fail("InternalError", "workspace_buffer must be 1-D of bytes");
    }
    if (workspace->shape[0] < need) {
      return fail("InternalError", "workspace_buffer too small: need %ld bytes, got %ld", (long)need, (long)workspace->shape[0]);
    }
    if ((uintptr_t)workspace->data % 128) return fail("InternalError", "workspace_buffer data pointer must be 128-byte aligned");
  } else {
    if (allocate(need, &own)) return -1;
    workspace = &((Tensor*)own)->tensor;
  }
  memset(workspace->data, 0xA5, need); /* NaN for whoever keeps something there */

  float* hidden = malloc(sizeof(float) * (I + 2 * H));
  float *sum = hidden + I, *x = sum + H;
  int64_t first = parallel[3] * E;
  for (int64_t t = 0; t < T; t++) {
    memset(sum, 0, sizeof(float) * H);
    for (int64_t k = 0; k < K; k++) {
      int64_t e = ((int32_t*)ids->data)[t * K + k] - first;
      if (e < 0 || e >= E) continue;
      float ag[2] = {1, 1}, wg[2] = {1, 1};
      for (int p = 0; p < 2; p++) {
        if (act_global[p]) ag[p] = ((float*)act_global[p]->data)[act_global[p]->ndim ? e : 0];
        if (weight_global[p]) wg[p] = ((float*)weight_global[p]->data)[e] * ag[p];
      }
      for (int64_t h = 0; h < H; h++) {
        x[h] = number(input->data, input->dtype, t * H + h);
        if (input_scales) x[h] *= ldexpf(1, ((uint8_t*)input_scales->data)[t * (H / 32) + h / 32] - 127);
      }
      if (!input_scales) quantize(r, x, H, ag[0]);
      for (int64_t i = 0; i < I; i++) {
        float v[2] = {0, 0}; /* up, gate: the order of the rows */
        for (int half = 0; half < (gated ? 2 : 1); half++) {
          int64_t row = half * I + i;
          for (int64_t h = 0; h < H; h++) {
            v[half] += x[h] * weight_at(r, w1, s[0], e, row, h, rows, H);
          }
          v[half] *= wg[0];
          if (r->mode == FP8_TENSOR) v[half] *= ((float*)s[0]->data)[e];
          if (b1) v[half] += number(b1->data, b1->dtype, e * rows + row);
        }
        int64_t function = kind == 3 && (optional[1] || optional[2] || optional[3]) ? 5 : kind;
        float y = activate(function, v[1], v[0], optional[1] ? ((float*)optional[1]->data)[e] : 1,
                           optional[2] ? ((float*)optional[2]->data)[e] : 0,
                           optional[3] ? ((float*)optional[3]->data)[e] : (kind == 7 ? 7 : INFINITY));
        if (r->mode == FP8_TENSOR) {
          y = e4m3_round(y * ((float*)s[1]->data)[s[1]->ndim ? e : 0]);
        } else {
          y = rounded(y, r->output);
        }
        hidden[i] = y;
      }
      quantize(r, hidden, I, ag[1]);
      float w = weights ? ((float*)weights->data)[t * K + k] : 1;
      for (int64_t h = 0; h < H; h++) {
        float v = 0;
        for (int64_t i = 0; i < I; i++) v += hidden[i] * weight_at(r, w2, s[1], e, h, i, H, I);
        v *= wg[1];
        if (r->mode == FP8_TENSOR) v *= ((float*)s[2]->data)[e];
        if (b2) v += number(b2->data, b2->dtype, e * H + h);
        sum[h] += w * rounded(v, r->output);
      }
    }
    for (int64_t h = 0; h < H; h++) store(output->data, output->dtype, t * H + h, sum[h]);
  }
  free(hidden);
  if (own) TVMFFIObjectDecRef(own);
  return 0;
}

static int answer(Any* result, int64_t value) {
  result->type_index = INT;
  result->i = value;
  return 0;
}

static int get_tactic_num(void* self, const Any* a, int32_t count, Any* result) {
  (void)self, (void)a;
  return count_is("get_tactic_num", count, 0) ? -1 : answer(result, GEMM1_TACTICS + GEMM2_TACTICS);
}

static int get_gemm1_tactic_count(void* self, const Any* a, int32_t count, Any* result) {
  (void)self, (void)a;
  return count_is("get_gemm1_tactic_count", count, 0) ? -1 : answer(result, GEMM1_TACTICS);
}

static int get_gemm2_tactic_count(void* self, const Any* a, int32_t count, Any* result) {
  (void)self, (void)a;
  return count_is("get_gemm2_tactic_count", count, 0) ? -1 : answer(result, GEMM2_TACTICS);
}

static int all_integers(const char* name, const Any* a, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    if (type_is(name, a, i, INT)) return -1;
  }
  return 0;
}

static int get_valid_tactics_for_shape(void* self, const Any* a, int32_t count, Any* result) {
  const char* name = "get_valid_tactics_for_shape";
  Runner* r = self;
  if (count_is(name, count, 3) || all_integers(name, a, count)) return -1;
  Any valid[GEMM1_TACTICS + GEMM2_TACTICS] = {0};
  int64_t found = 0, begin = a[0].i == 2 ? GEMM1_TACTICS : 0, end = a[0].i == 1 ? GEMM1_TACTICS : GEMM1_TACTICS + GEMM2_TACTICS;
  for (int64_t i = begin; i < end; i++) {
    if (r->mode == MXFP4 && a[2].i % TILE_K[i]) continue;
    valid[found].type_index = INT;
    valid[found++].i = i;
  }
  result->type_index = ARRAY;
  result->p = standin_array(valid, found);
  return 0;
}

static int get_workspace_size(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  const char* name = "get_workspace_size";
  if (count_is(name, count, 11) || all_integers(name, a, 9) || type_is(name, a, 9, BOOL) || type_is(name, a, 10, INT)) return -1;
  return answer(result, workspace_bytes(a[0].i, a[1].i, a[2].i, a[3].i, a[4].i));
}

static int get_tactic_occupancy(void* self, const Any* a, int32_t count, Any* result) {
  (void)self;
  if (count_is("get_tactic_occupancy", count, 1) || all_integers("get_tactic_occupancy", a, 1)) return -1;
  return answer(result, a[0].i == 3 ? 0 : 1); /* one tactic that this card has no room for */
}

static SafeCall find(Module* module, const char* name) {
  (void)module;
  static const struct {
    const char* name;
    SafeCall call;
  } functions[] = {{"run_moe", run_moe},
                   {"get_tactic_num", get_tactic_num},
                   {"get_gemm1_tactic_count", get_gemm1_tactic_count},
                   {"get_gemm2_tactic_count", get_gemm2_tactic_count},
#if INIT_ARGS >= 9
                   {"get_valid_tactics_for_shape", get_valid_tactics_for_shape},
#endif
#if RUN_MOE_ARGS >= 26
                   {"get_workspace_size", get_workspace_size},
#endif
                   {"get_tactic_occupancy", get_tactic_occupancy}};
  for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
    if (strcmp(functions[i].name, name) == 0) return functions[i].call;
  }
  return NULL;
}

static void delete_runner(void* self, int flags) {
  (void)flags;
  Runner* r = self;
  if (r->profile_workspace) TVMFFIObjectDecRef(r->profile_workspace);
  free(r);
  standin_destroyed();
}

EXPORT int __tvm_ffi_init(void* self, const Any* a, int32_t count, Any* result) {
  (void)self, (void)get_valid_tactics_for_shape, (void)get_workspace_size;
  const char* name = "init";
  if (count_is(name, count, INIT_ARGS)) return -1;
  for (int i = 0; i < 3; i++) {
    if (type_is(name, a, i, DTYPE)) return -1;
  }
  int flags[9] = {0}; /* deepseek, w4_group, mxfp8, packed, fused_finalize, humming */
  for (int i = 3; i < INIT_ARGS; i++) {
    if (type_is(name, a, i, BOOL)) return -1;
    flags[i - 3] = a[i].i != 0;
  }
  const DType bf16 = {4, 16, 1}, f16 = {2, 16, 1}, e4m3 = {10, 8, 1}, u8 = {1, 8, 1}, i64 = {0, 64, 1};
  int half = same(a[0].t, bf16) || same(a[0].t, f16);
  enum Mode mode;
  if (half && same(a[1].t, a[0].t) && same(a[2].t, a[0].t) && !flags[0] && !flags[1]) {
    mode = PLAIN;
  } else if (same(a[0].t, e4m3) && same(a[1].t, e4m3) && (same(a[2].t, bf16) || same(a[2].t, f16)) && !flags[0]) {
    mode = flags[2] ? MXFP8 : FP8_TENSOR;
  } else if (same(a[0].t, bf16) && same(a[1].t, e4m3) && same(a[2].t, bf16) && flags[0]) {
    mode = FP8_BLOCK;
  } else if (same(a[0].t, e4m3) && same(a[1].t, i64) && (same(a[2].t, bf16) || same(a[2].t, f16)) && flags[2] && !flags[0] && !flags[1]) {
    mode = MXFP4_MXFP8;
  } else if (half && same(a[1].t, i64) && same(a[2].t, a[0].t) && !flags[0] && !flags[1] && !flags[2]) {
    mode = NVFP4;
  } else if (same(a[0].t, bf16) && same(a[1].t, u8) && same(a[2].t, bf16) && flags[1] && !flags[3] && !flags[5]) {
    mode = MXFP4;
  } else {
    return fail("InternalError", "Could not construct fused moe op with the requested input combination");
  }
  if (told_to_fail()) return -1;
  Runner* r = standin_object(sizeof(Runner), MODULE, delete_runner);
  r->module.find = find;
  r->mode = mode;
  r->activation = a[0].t;
  r->weight = a[1].t;
  r->output = a[2].t;
  r->fused_finalize = flags[4];
  result->type_index = MODULE;
  result->p = r;
  return 0;
}

EXPORT int __tvm_ffi_set_deepgemm_jit_include_dirs(void* self, const Any* a, int32_t count, Any* result) {
  (void)self, (void)result;
  const char* name = "set_deepgemm_jit_include_dirs";
  if (count_is(name, count, 1) || type_is(name, a, 0, ARRAY)) return -1;
  Array* folders = a[0].p;
  if (folders->size != 1 || folders->items[0].type_index != STR) return fail("TypeError", "%s wants one string", name);
  snprintf(include_dir, sizeof include_dir, "%s", ((String*)folders->items[0].p)->text.data);
  return 0;
}

EXPORT int __tvm_ffi_interleave_moe_weights_for_sm90_mixed_gemm(void* self, const Any* a, int32_t count, Any* result) {
  (void)self, (void)result;
  const char* name = "interleave_moe_weights_for_sm90_mixed_gemm";
  if (count_is(name, count, 3) || type_is(name, a, 0, TENSOR_VIEW) || type_is(name, a, 1, TENSOR_VIEW) || type_is(name, a, 2, INT)) return -1;
  const DlTensor *from = a[0].p, *to = a[1].p;
  const DType u8 = {1, 8, 1};
  if (check_tensor(name, "weight", from, u8, 3, -1, -1, -1) ||
      check_tensor(name, "weight_interleaved", to, u8, 3, from->shape[0], from->shape[1], from->shape[2])) {
    return -1;
  }
  if (a[2].i != 1) return fail("ValueError", "the stand-in interleaves FP4 for bf16 (1), not %ld", (long)a[2].i);
  if (from->data == to->data) return fail("ValueError", "weights cannot be interleaved in place");
  if (from->shape[1] % 16 || from->shape[2] * 2 % 64) return fail("InternalError", "n must be divisible by 16, k by 64");
  int64_t half = from->shape[2], bytes = from->shape[0] * from->shape[1] * half;
  for (int64_t i = 0; i < bytes; i++) ((uint8_t*)to->data)[interleaved(i, half)] = ((uint8_t*)from->data)[i];
  return 0;
}
