// Factors and x in bf16.
#include "kernels.cuh"

ALL_OF_TYPE(bf16, bf16)
