// For few rows an expert, with launches that overlap; more rows are for wide.cuh there.
#include "formats.cuh"
#include "narrow.cuh"

#define F(name, Q, SG, ZERO, T, type) NARROW(JOIN(moe_narrow_, name, type, 8), Q, T, 8, SG, ZERO, 3)
FORMATS(F, Bf16, bf16)
FORMATS(F, F16, f16)
