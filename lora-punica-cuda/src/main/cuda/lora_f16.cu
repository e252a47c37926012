// Factors and x in f16.
#include "kernels.cuh"

ALL_OF_TYPE(f16, f16)
