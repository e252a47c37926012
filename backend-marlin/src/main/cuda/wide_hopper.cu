// The heights of wide.cuh.
#include "formats.cuh"
#include "wide.cuh"

#define ALL(name, Q, SG, ZERO, T, type) WIDE(JOIN(moe_wide_, name, type, 32), Q, T, 32, SG, ZERO)
#define PLAIN(name, Q, SG, ZERO, T, type) WIDE(JOIN(moe_wide_, name, type, 64), Q, T, 64, SG, ZERO)
#define OFTEN(name, Q, SG, ZERO, T, type)                     \
  WIDE(JOIN(moe_wide_, name, type, 48), Q, T, 48, SG, ZERO) \
  WIDE(JOIN(moe_wide_, name, type, 80), Q, T, 80, SG, ZERO) \
  WIDE(JOIN(moe_wide_, name, type, 160), Q, T, 160, SG, ZERO)
FORMATS(ALL, Bf16, bf16)
FORMATS(ALL, F16, f16)
FORMATS_RARE(PLAIN, Bf16, bf16)
FORMATS(PLAIN, F16, f16)
FORMATS_OFTEN(OFTEN, Bf16, bf16)
