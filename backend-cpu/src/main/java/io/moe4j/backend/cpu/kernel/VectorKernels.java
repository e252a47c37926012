package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.IntVector;
import jdk.incubator.vector.VectorOperators;
import jdk.incubator.vector.VectorSpecies;

/**
 * The Vector API implementation, at the width that the processor prefers. Only this class and its
 * package-private helpers mention {@code jdk.incubator.vector}; {@link KernelSelection} touches
 * them only where that module is there.
 */
final class VectorKernels implements Kernels {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final int VL = F.length();
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;

  private final TypedKernels f32 = VectorTyped.of(DType.F32);
  private final TypedKernels bf16 = VectorTyped.of(DType.BF16);
  private final TypedKernels f16 = VectorTyped.of(DType.F16);

  @Override
  public String description() {
    return "Vector API, " + F.vectorBitSize() + " bits";
  }

  @Override
  public int lanes() {
    return VL;
  }

  @Override
  public TypedKernels forType(DType dtype) {
    return switch (ScalarKernels.requireFloat(dtype)) {
      case BF16 -> bf16;
      case F16 -> f16;
      default -> f32;
    };
  }

  @Override
  public long panel(
      float[] w,
      int w0,
      MemorySegment x,
      long xOffset,
      int vectors,
      int k,
      MemorySegment c,
      long cOffset,
      MemorySegment next,
      long nextOffset,
      long step) {
    return VectorPanel.multiply(w, w0, x, xOffset, vectors, k, c, cOffset, next, nextOffset, step);
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      MemorySegment dst,
      long dstOffset,
      int n) {
    boolean gated = activation.isGated();
    int bound = F.loopBound(n);
    for (int i = 0; i < bound; i += VL) {
      FloatVector u = FloatVector.fromMemorySegment(F, up, upOffset + 4L * i, LE);
      FloatVector g = gated ? FloatVector.fromMemorySegment(F, gate, gateOffset + 4L * i, LE) : u;
      apply(activation, g, u).intoMemorySegment(dst, dstOffset + 4L * i, LE);
    }
    for (int i = bound; i < n; i++) {
      float g = gated ? gate.get(ScalarKernels.F32, gateOffset + 4L * i) : 0f;
      float u = up.get(ScalarKernels.F32, upOffset + 4L * i);
      dst.set(
          ScalarKernels.F32, dstOffset + 4L * i, (float) ScalarActivation.apply(activation, g, u));
    }
  }

  private static FloatVector apply(Activation a, FloatVector g, FloatVector u) {
    float limit = a.limit();
    return switch (a.kind()) {
      case SILU -> silu(g.min(limit)).mul(clip(u, limit));
      case GELU -> gelu(g).mul(u);
      case GELU_TANH -> geluTanh(g).mul(u);
      case SWIGLUOAI -> {
        FloatVector gc = g.min(limit);
        yield gc.div(exp(gc.mul(-a.alpha())).add(1f)).mul(clip(u, limit).add(a.beta()));
      }
      case SWIGLU_STEP -> silu(g).min(limit).mul(clip(u, limit));
      case SILU_NO_MUL -> silu(u);
      case GELU_NO_MUL -> gelu(u);
      case GELU_TANH_NO_MUL -> geluTanh(u);
      case RELU2_NO_MUL -> {
        FloatVector r = u.max(0f);
        yield r.mul(r);
      }
    };
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
