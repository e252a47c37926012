// For few pairs, with launches that overlap: the formats that checkpoints have most.
#include "formats.cuh"
#include "single.cuh"

#define F(name, Q, SG, ZERO, T, type)                              \
  SINGLE(JOIN(moe_single_, w13, name, type), Q, T, SG, ZERO, false) \
  SINGLE(JOIN(moe_single_, w2, name, type), Q, T, SG, ZERO, true)
F(u4_1, U4, 1, false, Bf16, bf16)
F(u4_1z, U4, 1, true, Bf16, bf16)
F(u8_1, U8, 1, false, Bf16, bf16)
F(e4m3_0, E4M3, 0, false, Bf16, bf16)
F(e4m3_1, E4M3, 1, false, Bf16, bf16)
F(e2m1_2, E2M1, 2, false, Bf16, bf16)
F(e2m1_4, E2M1, 4, false, Bf16, bf16)
F(u4_1, U4, 1, false, F16, f16)
