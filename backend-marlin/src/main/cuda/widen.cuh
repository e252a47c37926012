// Packed weights to the A operand of a 16 x 16 step: its four registers hold columns 2q and 2q + 1 of row g, of row g + 8, and columns
// 2q + 8 and 2q + 9 of both (g = lane / 4, q = lane % 4). repack.cu stores every lane's own codes side by side, in this order:
// 4 bits: nibble i is the low and nibble i + 4 the high half of register i. 8 bits: two words for two registers each, bytes low low high high.
#pragma once
#include "prim.cuh"

enum Code { U4, U8, E4M3, E2M1 };

BOTH int code_bits(int q) { return q == U4 || q == E2M1 ? 4 : 8; }
BOTH bool is_integer(int q) { return q == U4 || q == U8; }

// Where a code is or'ed into the mantissa of a number that is so large that 1 is its last bit: minus that number and the zero point.
template <int Q, class T>
struct Zero;
template <>
struct Zero<U4, Bf16> { static constexpr uint32_t BASE = 0xC300C300; };
template <>
struct Zero<U4, F16> { static constexpr uint32_t BASE = 0xE400E400; };
template <>
struct Zero<U8, F16> { static constexpr uint32_t BASE = 0xE400E400; };
template <>
struct Zero<U8, Bf16> { static constexpr uint32_t BASE = 0xCB000000; };  // f32: codes and zero points to 255 do not fit bf16's mantissa
template <class T>
struct Zero<E4M3, T> { static constexpr uint32_t BASE = 0; };
template <class T>
struct Zero<E2M1, T> { static constexpr uint32_t BASE = 0; };

template <int Q, class T>
DEV uint32_t zero_word(uint32_t zero) {
  if constexpr (!is_integer(Q)) return 0;
  else if constexpr (Zero<Q, T>::BASE == 0xCB000000) return Zero<Q, T>::BASE + zero;
  else return Zero<Q, T>::BASE + zero * 0x10001u;
}

template <class T>
DEV uint32_t one();
template <>
DEV uint32_t one<Bf16>() { return 0x3F803F80; }
template <>
DEV uint32_t one<F16>() { return 0x3C003C00; }
template <class T>
DEV uint32_t minus_zero() { return 0x80008000; }

// What the floats are still to be multiplied with: their exponents are read with another bias. A power of two.
template <int Q, class T>
DEV uint32_t unit() {
  constexpr bool half = Zero<U4, T>::BASE == 0xE400E400;
  return Q == E4M3 ? (half ? 0x5C005C00u : 0x7B807B80u) : Q == E2M1 ? (half ? 0x74007400u : 0x7E807E80u) : one<T>();
}

// Codes as floats, `bias` too large: or'ed into the mantissa of a large number.
template <int Q, class T>
DEV void widen_biased(uint32_t* a, const uint32_t* w) {
  constexpr bool half = Zero<U4, T>::BASE == 0xE400E400;
  if constexpr (Q == U4) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = mask_or(w[0] >> (4 * i), 0x000F000F, half ? 0x64006400 : 0x43004300);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = permute(w[i / 2], 0x64646464, i & 1 ? 0x4341 : 0x4240);
  }
}
// There is such a number: 8 bits do not fit bf16's mantissa.
template <int Q, class T>
BOTH bool has_bias_form() {
  return Q == U4 || (Q == U8 && Zero<U4, T>::BASE == 0xE400E400);
}
// What a symmetric code is then too large by.
template <int Q, class T>
BOTH float code_bias() {
  return (Zero<U4, T>::BASE == 0xE400E400 ? 1024.0f : 128.0f) + (Q == U4 ? 8.0f : 128.0f);
}

// Integers with their zero point taken off, floats without `unit`.
template <int Q, class T>
DEV void widen_raw(uint32_t* a, const uint32_t* w, uint32_t z0, uint32_t z1) {
  constexpr bool half = Zero<U4, T>::BASE == 0xE400E400;
  if constexpr (has_bias_form<Q, T>()) {
    widen_biased<Q, T>(a, w);
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = fma2<T>(a[i], one<T>(), i & 1 ? z1 : z0);
  } else if constexpr (Q == U8) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float z = bits_float(i & 1 ? z1 : z0);
      float low = bits_float(permute(w[i / 2], 0x4B000000, i & 1 ? 0x7441 : 0x7440)) + z;
      float high = bits_float(permute(w[i / 2], 0x4B000000, i & 1 ? 0x7443 : 0x7442)) + z;
      a[i] = pack2<T>(low, high);
    }
  } else if constexpr (Q == E4M3) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t v = i & 1 ? w[i / 2] : w[i / 2] << 8;
      a[i] = mask_or(v, 0x80008000, (v & 0x7F007F00) >> (half ? 1 : 4));
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t v = w[0] << (12 - 4 * i);
      a[i] = mask_or(v, 0x80008000, (v >> (half ? 3 : 6)) & (half ? 0x0E000E00 : 0x01C001C0));
    }
  }
}

template <int Q, class T>
DEV void widen(uint32_t* a, const uint32_t* w, uint32_t z0, uint32_t z1) {
  widen_raw<Q, T>(a, w, z0, z1);
  if constexpr (!is_integer(Q)) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = fma2<T>(a[i], unit<Q, T>(), minus_zero<T>());
  }
}

// Ratios of rows g and g + 8 as factors of a pair. bf16 has fewer bits than a ratio: what it leaves is a second factor, so that a weight is rounded
// once, as if the scale had been exact.
struct Factors {
  uint32_t high[2], rest[2];
};

// ratio: two of f16. FINE: they may have more bits than bf16.
template <int Q, class T, bool FINE>
DEV Factors factors_of(uint32_t ratio) {
  constexpr bool half = Zero<U4, T>::BASE == 0xE400E400;
  Factors f;
  if constexpr (half) {
    f.high[0] = permute(ratio, ratio, 0x1010);
    f.high[1] = permute(ratio, ratio, 0x3232);
    f.rest[0] = f.rest[1] = 0;
  } else {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float r = half_float((uint16_t)(ratio >> 16 * i));
      f.high[i] = pack2<T>(r, r);
      const float rest = FINE ? r - bits_float(f.high[i] << 16) : 0.0f;
      f.rest[i] = FINE ? pack2<T>(rest, rest) : 0;
    }
  }
  if constexpr (!is_integer(Q)) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      f.high[i] = fma2<T>(f.high[i], unit<Q, T>(), minus_zero<T>());
      if (FINE) f.rest[i] = fma2<T>(f.rest[i], unit<Q, T>(), minus_zero<T>());
    }
  }
  return f;
}

// Widened and multiplied with the ratios.
template <int Q, class T, bool FINE>
DEV void widen_scaled(uint32_t* a, const uint32_t* w, uint32_t z0, uint32_t z1, const Factors& f) {
  constexpr bool half = Zero<U4, T>::BASE == 0xE400E400;
  widen_raw<Q, T>(a, w, z0, z1);
#pragma unroll
  for (int i = 0; i < 4; i++) a[i] = fma2<T>(a[i], f.high[i & 1], half || !FINE ? minus_zero<T>() : fma2<T>(a[i], f.rest[i & 1], minus_zero<T>()));
}
