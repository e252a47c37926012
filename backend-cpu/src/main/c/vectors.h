// Vectors of VL floats, the compiler's own. Whoever includes it defines VL and `widen_f16`.
#ifndef VECTORS_H
#define VECTORS_H
#include "moe.h"

typedef float vf __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef uint16_t vh __attribute__((vector_size(VL * 2), aligned(2), may_alias));
#ifndef INLINE  // tests with sanitizers compile several times as fast where calls stay calls
#define INLINE static inline __attribute__((always_inline))
#endif

INLINE vf splat(float v) { return v - (vf){}; }

INLINE vf widen_bf16(vh h) { return (vf)(__builtin_convertvector(h, vu) << 16); }
static vf widen_f16(vh h);
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Values of k whose products with a row of int8 are summed before they are scaled.
INLINE int64_t run_of(const struct moe_coded *q) { return q->format == CODE_4 ? q->stretch : q->group; }
#endif
