// The activation functions of experts, in f32.
#pragma once

namespace moe {

enum Kind {
  SILU = 0,
  GELU = 1,
  GELU_TANH = 2,
  SWIGLUOAI = 3,
  SWIGLU_STEP = 4,
  SILU_NO_MUL = 5,
  GELU_NO_MUL = 6,
  GELU_TANH_NO_MUL = 7,
  RELU2_NO_MUL = 8
};

// Comparisons and not fminf: NaN must stay NaN.
__device__ __forceinline__ float at_most(float v, float limit) { return v > limit ? limit : v; }
__device__ __forceinline__ float clip(float v, float limit) { return v < -limit ? -limit : at_most(v, limit); }
__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }
__device__ __forceinline__ float gelu_erf(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_tanh(float v) {
  return 0.5f * v * (1.0f + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v)));
}

__device__ __forceinline__ float activate(int kind, float g, float u, float alpha, float beta, float limit) {
  switch (kind) {
    case SILU:
      g = at_most(g, limit);
      return g * sigmoid(g) * clip(u, limit);
    case GELU:
      return gelu_erf(g) * u;
    case GELU_TANH:
      return gelu_tanh(g) * u;
    case SWIGLUOAI:
      g = at_most(g, limit);
      return g * sigmoid(alpha * g) * (clip(u, limit) + beta);
    case SWIGLU_STEP:
      return at_most(g * sigmoid(g), limit) * clip(u, limit);
    case SILU_NO_MUL:
      return u * sigmoid(u);
    case GELU_NO_MUL:
      return gelu_erf(u);
    case GELU_TANH_NO_MUL:
      return gelu_tanh(u);
    default:
      u = u < 0.0f ? 0.0f : u;
      return u * u;
  }
}

}  // namespace moe
