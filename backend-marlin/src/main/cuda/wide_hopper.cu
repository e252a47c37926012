// The heights of wide.cuh.
#include "formats.cuh"
#include "wide.cuh"

#define F(name, Q, SG, ZERO, T, type)                      \
  WIDE(JOIN(moe_wide_, name, type, 32), Q, T, 32, SG, ZERO) \
  WIDE(JOIN(moe_wide_, name, type, 64), Q, T, 64, SG, ZERO)
FORMATS(F, Bf16, bf16)
FORMATS(F, F16, f16)

#define TALL(name, Q, SG, ZERO, T, type) WIDE(JOIN(moe_wide_, name, type, 160), Q, T, 160, SG, ZERO)
FORMATS_OFTEN(TALL, Bf16, bf16)

// Where it was measured. PTX has a limit.
WIDE(moe_wide_u4_1_bf16_80, U4, Bf16, 80, 1, false)
WIDE(moe_wide_e4m3_1_bf16_80, E4M3, Bf16, 80, 1, false)
