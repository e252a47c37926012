// For few pairs, with launches that overlap.
#include "formats.cuh"
#include "single.cuh"

#define F(name, Q, SG, ZERO, T, type)                                       \
  SINGLE(JOIN(moe_single_, w13, name, type), Q, T, SG, ZERO, false)          \
  SINGLE(JOIN(moe_single_, w2, name, type), Q, T, SG, ZERO, true)
FORMATS_OFTEN(F, Bf16, bf16)
F(u4_1, U4, 1, false, F16, f16)
F(u4_1z, U4, 1, true, F16, f16)
