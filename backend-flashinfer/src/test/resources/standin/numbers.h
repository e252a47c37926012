/* The number formats of experts' weights and activations, one value at a time. */
#ifndef MOE4J_STANDIN_NUMBERS_H
#define MOE4J_STANDIN_NUMBERS_H

#include <math.h>

#include "standin.h"

static inline float bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float v;
  memcpy(&v, &wide, 4);
  return v;
}

static inline uint16_t to_bf16(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  if (isnan(v)) return 0x7FC0;
  return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static inline float f16(uint16_t bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  float v = exponent == 31 ? (mantissa ? NAN : INFINITY) : exponent ? ldexpf(1024 + mantissa, exponent - 25) : ldexpf(mantissa, -24);
  return bits & 0x8000 ? -v : v;
}

static inline uint16_t to_f16(float v) {
  uint16_t sign = signbit(v) ? 0x8000 : 0;
  float a = fabsf(v);
  if (isnan(v)) return sign | 0x7E00;
  if (a >= 65520) return sign | 0x7C00;
  if (a < ldexpf(1, -14)) return sign | (uint16_t)nearbyintf(ldexpf(a, 24));
  int exponent;
  frexpf(a, &exponent); /* a = m * 2^exponent, 0.5 <= m < 1 */
  int mantissa = (int)nearbyintf(ldexpf(a, 11 - exponent)); /* 1024..2048 */
  return sign | (uint16_t)(((exponent + 14) << 10) + (mantissa - 1024));
}

static inline float e4m3(uint8_t bits) {
  int exponent = bits >> 3 & 15, mantissa = bits & 7;
  if ((bits & 0x7F) == 0x7F) return NAN;
  float v = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
  return bits & 0x80 ? -v : v;
}

/* To the nearest, ties to even; too large becomes the largest. */
static inline float e4m3_round(float v) {
  float a = fabsf(v);
  if (isnan(v)) return v;
  if (a > 448) a = 448;
  int exponent;
  frexpf(a, &exponent);
  if (exponent < -5) exponent = -5;
  a = ldexpf(nearbyintf(ldexpf(a, 4 - exponent)), exponent - 4);
  return copysignf(fminf(a, 448), v);
}

static inline float e2m1(int bits) {
  static const float values[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return bits & 8 ? -values[bits & 7] : values[bits & 7];
}

/* To the nearest, ties to even codes; too large becomes the largest. */
static inline float e2m1_round(float v) {
  float a = fabsf(v), step = a < 2 ? 0.5f : a < 4 ? 1 : 2;
  return copysignf(fminf(nearbyintf(a / step) * step, 6), v);
}

static inline float number(const void* data, DType t, int64_t i) {
  if (t.code == 4) return bf16(((const uint16_t*)data)[i]);
  if (t.code == 10) return e4m3(((const uint8_t*)data)[i]);
  if (t.code == 2 && t.bits == 16) return f16(((const uint16_t*)data)[i]);
  return ((const float*)data)[i];
}

static inline void store(void* data, DType t, int64_t i, float v) {
  if (t.code == 4) {
    ((uint16_t*)data)[i] = to_bf16(v);
  } else if (t.bits == 16) {
    ((uint16_t*)data)[i] = to_f16(v);
  } else {
    ((float*)data)[i] = v;
  }
}

static inline float rounded(float v, DType t) { return t.code == 4 ? bf16(to_bf16(v)) : t.bits == 16 ? f16(to_f16(v)) : v; }

static inline float sigmoid(float x) { return 1 / (1 + expf(-x)); }
static inline float silu(float x) { return x * sigmoid(x); }
static inline float gelu(float x) { return 0.5f * x * (1 + erff(x * (float)M_SQRT1_2)); }
static inline float gelu_tanh(float x) { return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x))); }

#endif
