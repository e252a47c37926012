// The heights of wide.cuh.
#include "formats.cuh"
#include "wide.cuh"

#define F(name, Q, SG, ZERO, T, type)                         \
  WIDE(JOIN(moe_wide_, name, type, 32), Q, T, 32, SG, ZERO, 2) \
  WIDE(JOIN(moe_wide_, name, type, 64), Q, T, 64, SG, ZERO, 2)
FORMATS(F, Bf16, bf16)
FORMATS(F, F16, f16)

#define TALL(name, Q, SG, ZERO, T, type) WIDE(JOIN(moe_wide_, name, type, 160), Q, T, 160, SG, ZERO, 1)
FORMATS_OFTEN(TALL, Bf16, bf16)
