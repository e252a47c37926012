package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * Activations over vectors. One loop for each function: a loop that asks which one it is becomes
 * too large to be inlined as a whole, and then every vector in it is an object.
 */
final class VectorActivation {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;

  private VectorActivation() {}

  /** The first {@code n} elements, n a multiple of the lanes. */
  static void apply(
      Activation a,
      MemorySegment gate,
      long g0,
      MemorySegment up,
      long u0,
      MemorySegment dst,
      long d0,
      int n) {
    float limit = a.limit();
    switch (a.kind()) {
      case SILU -> siluMul(gate, g0, up, u0, dst, d0, n, limit);
      case GELU -> geluMul(gate, g0, up, u0, dst, d0, n);
      case GELU_TANH -> geluTanhMul(gate, g0, up, u0, dst, d0, n);
      case SWIGLUOAI -> swiglu(gate, g0, up, u0, dst, d0, n, limit, a.alpha(), a.beta());
      case SWIGLU_STEP -> swigluStep(gate, g0, up, u0, dst, d0, n, limit);
      case SILU_NO_MUL -> silu(up, u0, dst, d0, n);
      case GELU_NO_MUL -> gelu(up, u0, dst, d0, n);
      case GELU_TANH_NO_MUL -> geluTanh(up, u0, dst, d0, n);
      case RELU2_NO_MUL -> relu2(up, u0, dst, d0, n);
    }
  }

  private static MemorySegment known(MemorySegment s) {
    return SegmentClass.known(s, SegmentClass.NATIVE);
  }

  private static FloatVector load(MemorySegment s, long at, int i) {
    return FloatVector.fromMemorySegment(F, s, at + 4L * i, LE);
  }

  private static void siluMul(
      MemorySegment gate,
      long g0,
      MemorySegment up,
      long u0,
      MemorySegment dst,
      long d0,
      int n,
      float limit) {
    gate = known(gate);
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector g = load(gate, g0, i);
      FloatVector u = load(up, u0, i);
      silu(g.min(limit)).mul(clip(u, limit)).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void geluMul(
      MemorySegment gate, long g0, MemorySegment up, long u0, MemorySegment dst, long d0, int n) {
    gate = known(gate);
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector g = load(gate, g0, i);
      FloatVector u = load(up, u0, i);
      gelu(g).mul(u).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void geluTanhMul(
      MemorySegment gate, long g0, MemorySegment up, long u0, MemorySegment dst, long d0, int n) {
    gate = known(gate);
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector g = load(gate, g0, i);
      FloatVector u = load(up, u0, i);
      geluTanh(g).mul(u).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void swiglu(
      MemorySegment gate,
      long g0,
      MemorySegment up,
      long u0,
      MemorySegment dst,
      long d0,
      int n,
      float limit,
      float alpha,
      float beta) {
    gate = known(gate);
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector g = load(gate, g0, i).min(limit);
      FloatVector u = clip(load(up, u0, i), limit).add(beta);
      g.div(exp(g.mul(-alpha)).add(1f)).mul(u).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void swigluStep(
      MemorySegment gate,
      long g0,
      MemorySegment up,
      long u0,
      MemorySegment dst,
      long d0,
      int n,
      float limit) {
    gate = known(gate);
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector g = load(gate, g0, i);
      FloatVector u = load(up, u0, i);
      silu(g).min(limit).mul(clip(u, limit)).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void silu(MemorySegment up, long u0, MemorySegment dst, long d0, int n) {
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector u = load(up, u0, i);
      silu(u).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void gelu(MemorySegment up, long u0, MemorySegment dst, long d0, int n) {
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector u = load(up, u0, i);
      gelu(u).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void geluTanh(MemorySegment up, long u0, MemorySegment dst, long d0, int n) {
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector u = load(up, u0, i);
      geluTanh(u).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static void relu2(MemorySegment up, long u0, MemorySegment dst, long d0, int n) {
    up = known(up);
    dst = known(dst);
    for (int i = 0; i < n; i += VL) {
      FloatVector r = load(up, u0, i).max(0f);
      r.mul(r).intoMemorySegment(dst, d0 + 4L * i, LE);
    }
  }

  private static FloatVector clip(FloatVector v, float limit) {
    return limit == Float.POSITIVE_INFINITY ? v : v.min(limit).max(-limit);
  }

  private static FloatVector silu(FloatVector v) {
    return v.div(exp(v.neg()).add(1f));
  }

  /** {@code 0.5 v (1 + tanh z) = v / (1 + exp(-2 z))}. */
  private static FloatVector geluTanh(FloatVector v) {
    FloatVector z = v.mul(v).mul(0.044715f).add(1f).mul(v).mul((float) (-2 * 0.7978845608028654));
    return v.div(exp(z).add(1f));
  }

  /** {@code 0.5 v erfc(-v / sqrt 2)}, with the fit that {@link ScalarActivation#erfc} names. */
  private static FloatVector gelu(FloatVector v) {
    FloatVector x = v.mul((float) -0.70710678);
    FloatVector z = x.abs();
    FloatVector t = FloatVector.broadcast(F, 1f).div(z.mul(0.5f).add(1f));
    FloatVector p = FloatVector.broadcast(F, (float) 0.17087277);
    p = p.mul(t).add((float) -0.82215223);
    p = p.mul(t).add((float) 1.48851587);
    p = p.mul(t).add((float) -1.13520398);
    p = p.mul(t).add((float) 0.27886807);
    p = p.mul(t).add((float) -0.18628806);
    p = p.mul(t).add((float) 0.09678418);
    p = p.mul(t).add((float) 0.37409196);
    p = p.mul(t).add((float) 1.00002368);
    p = p.mul(t).add((float) -1.26551223);
    FloatVector r = t.mul(exp(p.sub(z.mul(z))));
    FloatVector erfc = r.blend(r.neg().add(2f), x.compare(VectorOperators.LT, 0f));
    return v.mul(0.5f).mul(erfc);
  }

  /**
   * {@code e^x} with a relative error of at most 2 ulp for results in the normal range; arguments
   * are clamped to -87..88, NaN stays NaN. Range reduction to {@code +-ln(2)/2} in two steps (Cody
   * and Waite), then the Taylor polynomial of degree 7, whose error there is below 2^-26.
   */
  static FloatVector exp(FloatVector x) {
    FloatVector v = x.max(-87f).min(88f);
    // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low mantissa bits.
    FloatVector shifted = v.mul((float) 1.44269504).add(12582912f);
    FloatVector n = shifted.sub(12582912f);
    FloatVector r = n.fma(FloatVector.broadcast(F, (float) -0.693359375), v);
    r = n.fma(FloatVector.broadcast(F, (float) 2.12194440e-4), r);
    FloatVector p = FloatVector.broadcast(F, 1f / 5040);
    p = p.fma(r, FloatVector.broadcast(F, 1f / 720));
    p = p.fma(r, FloatVector.broadcast(F, 1f / 120));
    p = p.fma(r, FloatVector.broadcast(F, 1f / 24));
    p = p.fma(r, FloatVector.broadcast(F, 1f / 6));
    p = p.fma(r, FloatVector.broadcast(F, 0.5f));
    p = p.fma(r, FloatVector.broadcast(F, 1f));
    p = p.fma(r, FloatVector.broadcast(F, 1f));
    IntVector exponent = shifted.reinterpretAsInts().lanewise(VectorOperators.LSHL, 23);
    return p.reinterpretAsInts().add(exponent).reinterpretAsFloats();
  }
}
