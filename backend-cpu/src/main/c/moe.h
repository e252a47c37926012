// What Java and the kernels agree on. All sizes and distances are in bytes unless they are named after elements; every address and count has
// been checked by the caller (io.moe4j.backend.cpu.NativeForward). Java fills the structs by offset: see io.moe4j.backend.cpu.ffi.CallStruct and moe_abi.
#ifndef MOE_H
#define MOE_H
#include <stdint.h>

// Outputs of one block of packed weights, and the steps in which a row's length is padded.
enum { BLOCK = 32, HALF = 16 };

// Positions of a task at most, and of one product: sums of those stand in the first-level cache.
enum { MAX_ROWS = 256, PRODUCT_ROWS = 128 };

// Dtypes, as Java numbers them.
enum { TYPE_F32 = 0, TYPE_BF16 = 1, TYPE_F16 = 2, TYPES = 3, TYPE_CODED = 3 };

// Instruction sets; of one architecture each contains those before it.
enum { ISA_NONE = 0, ISA_AVX2 = 1, ISA_AVX512 = 2, ISA_BF16 = 3, ISA_AMX = 4, ISA_NEON = 5, ISA_NEON_BF16 = 6, ISAS = 7 };

enum { GATE = 0, UP = 1, DOWN = 2 };

// Activations, in the order of io.moe4j.api.config.Activation.Kind.
enum { SILU, GELU, GELU_TANH, SWIGLUOAI, SWIGLU_STEP, SILU_NO_MUL, GELU_NO_MUL, GELU_TANH_NO_MUL, RELU2_NO_MUL };

// What a code is, how scales are stored, and how the codes of a matrix [out][in] lie where they come from.
enum { STRETCH = 128 };  // values of k that are summed before they are scaled, at most
enum { CODE_4 = 0, CODE_I8 = 1, CODE_E4M3 = 2, CODE_U8X4 = 3 };
enum { SCALE_F32 = 0, SCALE_BF16 = 1, SCALE_F16 = 2, SCALE_E8M0 = 3, SCALE_E4M3 = 4 };
enum { LIE_DENSE = 0, LIE_ALONG_IN = 1, LIE_ALONG_OUT = 2, LIE_ALONG_OUT_AWQ = 3 };

// Packed matrices in codes. A block is
//   codes    4 bits: [k / 8][32] words; bits 4n.. of a word are k = 2n for n < 4 and k = 2n - 7 for the others. 8 bits: [k][32], or, for rows of
//            int8 (CODE_U8X4), [k / 4][32][4] with 128 added to each code
//   scales   [group][32], or [group][2] where 16 outputs share one
//   zeros    [group][32] bytes; 4 bits: [group][16], output i in the low half of byte i and output 16 + i in its high half
// A value is (code - zero - zero_offset) * scale * factor.
struct moe_coded {
  int64_t format;
  int64_t stretch;                // values of k summed before they are scaled: a multiple of 8, at most 128
  int64_t group;                  // values of k that share a scale: a multiple of the stretch
  int64_t groups;                 // of a block
  int64_t scale_type, scale_lanes;
  int64_t scales, zeros;          // where they begin in a block; zeros 0 = there are none
  int64_t zero_offset;
  const float *factors;           // [expert][2]: of the first 16 outputs of a block, of the others
  int8_t table[16];               // values of 4-bit codes
};

// A matrix in codes as a checkpoint has it. Distances of codes and zeros are in fields: 4 or 8 bits, and 8 bits for dense zeros.
struct moe_source {
  const char *codes;
  int64_t code_row, code_col, code_lie;
  const int32_t *order;           // by packed value of k: which one of the matrix it is; null = the same
  int64_t flip;                   // what unsigned 8-bit codes are xored with to become signed
  const char *scales;
  int64_t scale_row, scale_col;   // in bytes
  int64_t scale_rows;             // outputs that share a scale
  const char *zeros;              // or null
  int64_t zero_row, zero_col, zero_lie, zero_bits;
  int64_t groups;
};

// One adapter's factors for one product of one expert; rank 0 = none.
struct moe_target {
  const char *a;                  // [rank][in]
  int64_t a_row, a_col;           // from one rank to the next, from one input to the next
  const char *b;                  // [out][rank]
  int64_t b_out, b_rank;          // from one output to the next, from one rank to the next
  float *s;                       // [rows of the segment][rank], what A makes of x
  int32_t rank, a_type, b_type;
  int32_t own_shrink;             // 0 where s is another target's
};

// Sorted positions of one expert that share an adapter.
struct moe_segment {
  int64_t from, to;
  struct moe_target target[3];
};

// One forward of one layer.
struct moe_call {
  int64_t hidden, intermediate;   // elements of a row of x and y, and of the activations
  int64_t hidden_padded, intermediate_padded;
  int64_t type13, type2;          // of the packed matrices
  int64_t row_type;               // of x and the activations: TYPE_F32, or TYPE_BF16 for units that multiply bf16
  int64_t isa;
  int64_t activation;
  float alpha, beta, limit, unused;
  const char *w13;                // packed: [expert][block][..], gated: 16 outputs of gate, then 16 of up
  int64_t w13_expert, w13_block;
  const char *w2;
  int64_t w2_expert, w2_block;
  const float *b13;               // [expert][block][32] or null
  const float *b2;                // [expert][hidden_padded] or null
  char *x;                        // [position][hidden_padded] of row_type, zeros behind a row's end
  int64_t x_stride;
  char *act;                      // [position][intermediate_padded], likewise
  int64_t act_stride;
  char *y;                        // [position][hidden_padded] F32
  int64_t y_stride;
  const int32_t *pair;            // by position
  const int32_t *position;        // by pair, -1 = goes nowhere
  const struct moe_coded *coded13, *coded2;  // where the type is TYPE_CODED
  const int32_t *order13, *order2;           // [expert][padded]: as moe_source has it, or null
  char *x13, *act2;                          // what the products read: x and act, or copies in those orders, or in int8
  int64_t x13_stride, act2_stride;
  const struct moe_segment *segments;
  int64_t s_stride;               // from one row of s to the next
  int64_t top_k;
  int64_t int8;                   // bit 0: x13 is int8, bit 1: act2 is; row_type is F32 then
};

// A row of int8: [padded] values, an int32 sum of them for each group, the f32 that they are multiplied with. Beside 4-bit codes each eight values stand in
// the order 0 4 1 5 2 6 3 7, which is that of a word's low halves of bytes, then the high ones.

// Some blocks of outputs for some positions of one expert, and the segments that these meet.
struct moe_task {
  int64_t expert, row, rows, block, blocks, segment, segments;
};

// Tokens from..to-1 by outputs out..out+outs-1 of a product of rows as they come with weights as they lie.
struct moe_dense {
  int64_t from, to, out, outs;
  int64_t in;                     // elements of a row
  int64_t x_type, w_type;
  int64_t w_stride, y_stride;     // rows of x are dense
};

// How tokens choose, as io.moe4j.api.config.RoutingConfig says. `two`: groups are scored by their two best experts.
enum { SCORE_SOFTMAX = 0, SCORE_SOFTMAX_TOPK = 1, SCORE_SIGMOID = 2, SCORE_SQRT_SOFTPLUS = 3 };
enum { ROUTE_EXPERTS = 1024 };    // at most
struct moe_route {
  int64_t experts, top_k, scoring, groups, top_groups, two, renormalize;
  double epsilon, sum_floor;
  float scaling, unused;
};

// Tokens from..to-1 of a layer's output: (routed + factor shared), halved if `half`, + bias.
struct moe_finish {
  int64_t from, to;
  int64_t hidden;                 // elements of a row; rows are dense
  int64_t half, type;             // of the output
};

// Instruction sets this processor and system offer: the highest of ISA_*.
int32_t moe_isa(void);
// Sizes of the structs, which Java compares with its own: 0 call, 1 segment, 2 target, 3 coded, 4 source, 5 route.
int64_t moe_abi(int32_t i);

#define HIDDEN __attribute__((visibility("hidden")))
#define PUBLIC __attribute__((visibility("default")))

// c[row][32] = rows of x times one packed block; k is padded. Where one pass over the block is enough, what comes 8 KB later is fetched
// meanwhile; otherwise the block behind it, if `first`. 2 = the task's first block, which nobody has fetched.
typedef void product_fn(const char *x, int64_t x_stride, int64_t rows, const char *w, int64_t k, float *c, int first);

// The same for a block in codes of an expert.
typedef void coded_fn(const struct moe_coded *q, int64_t expert, const char *x, int64_t x_stride, int64_t rows, const char *w, int64_t k, float *c, int first);

struct kernels {
  product_fn *product[2][TYPES];  // [row_type][weight_type]
  coded_fn *coded[2];             // [row_type]
  coded_fn *coded8;               // rows of int8; null = no units for them
  // Before a task's first product of rows of int8 or bf16, for so many rows of k values; q = null for plain weights.
  void (*begin)(const struct moe_coded *q, int64_t k, int64_t rows, int int8);
  void (*done)(void);             // after the last product of a task
  void (*quantise)(const struct moe_call *, int32_t down, int64_t expert, int64_t from, int64_t to);
  void (*gather)(const struct moe_call *, const char *hidden, int32_t type, const float *weight, int64_t first_token, int64_t from, int64_t to);
  void (*shrink)(const struct moe_call *, int64_t segment, int32_t down);
  void (*w13)(const struct moe_call *, const struct moe_task *);
  void (*w2)(const struct moe_call *, const struct moe_task *);
  void (*dense)(const struct moe_dense *, const char *x, const char *w, const float *bias, char *y);
  void (*finish)(const struct moe_finish *, const float *routed, const float *shared, const float *factor, const float *bias, char *out);
  void (*route)(const struct moe_route *, const float *logits, const float *bias, const float *scale, int32_t *ids, float *weights, int64_t from, int64_t to);
  int64_t (*peak)(int64_t rounds);  // bf16 multiply-adds in registers: operations done; null = no units for them
  void (*combine)(const struct moe_call *, const float *weight, int64_t first_token, int64_t from, int64_t to, char *out, int32_t type);
};
HIDDEN const struct kernels *kernels_of(int64_t isa);
extern HIDDEN const struct kernels kernels_avx2, kernels_avx512, kernels_amx, kernels_neon;
extern HIDDEN product_fn product_bf16_avx512bf16, product_bf16_neonbf16;
extern HIDDEN coded_fn coded_avx512bf16, coded8_vnni, coded8_neoni8mm;
HIDDEN void shrink_avx512bf16(const struct moe_call *, int64_t segment, int32_t down);
HIDDEN void shrink_target_avx512(const struct moe_call *, const struct moe_target *, const char *x, int64_t x_stride, int64_t rows, int64_t in);
HIDDEN int64_t peak_avx512bf16(int64_t rounds);
HIDDEN int32_t permit_amx(void);
#endif
