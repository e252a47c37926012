// The heights of narrow.cuh that every card has.
#include "formats.cuh"
#include "narrow.cuh"

#define F(name, Q, SG, ZERO, T, type)                           \
  NARROW(JOIN(moe_narrow_, name, type, 16), Q, T, 16, SG, ZERO, 2) \
  NARROW(JOIN(moe_narrow_, name, type, 64), Q, T, 64, SG, ZERO, 1)
FORMATS(F, Bf16, bf16)
FORMATS(F, F16, f16)
