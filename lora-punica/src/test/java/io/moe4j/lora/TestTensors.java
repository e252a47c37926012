package io.moe4j.lora;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.SplittableRandom;

/** Seeded tensors, and outputs with guard bands. */
public final class TestTensors {
  private static final int GUARD = 256;

  private TestTensors() {}

  /** Uniform in [-1, 1). */
  public static Tensor random(SplittableRandom rng, DType dtype, long... shape) {
    int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
    // One draw a tensor and a linear congruence after that: the grids need millions of elements.
    int state = rng.nextInt();
    if (dtype == DType.F32) {
      float[] values = new float[n];
      for (int i = 0; i < n; i++) {
        state = state * 1664525 + 1013904223;
        values[i] = (state >> 8) * 0x1p-23f;
      }
      return Tensor.ofFloats(values, shape);
    }
    short[] bits = new short[n];
    for (int i = 0; i < n; i++) {
      state = state * 1664525 + 1013904223;
      float value = (state >> 8) * 0x1p-23f;
      bits[i] = dtype == DType.BF16 ? Tensor.toBFloat16(value) : Float.floatToFloat16(value);
    }
    return Tensor.of(dtype, MemorySegment.ofArray(bits), shape);
  }

  private static void put(MemorySegment s, DType dtype, int i, float v) {
    switch (dtype) {
      case F32 -> s.set(ValueLayout.JAVA_FLOAT_UNALIGNED, 4L * i, v);
      case BF16 -> s.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, Tensor.toBFloat16(v));
      case F16 -> s.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i, Float.floatToFloat16(v));
      default -> throw new IllegalArgumentException(dtype.toString());
    }
  }

  public static LoraFactors factors(
      SplittableRandom rng, DType dtype, int experts, int rank, int in, int out) {
    return new LoraFactors(
        random(rng, dtype, experts, rank, in), random(rng, dtype, experts, out, rank));
  }

  /** An output between guard bands, all of it random bytes: any bit pattern must survive. */
  static final class Guarded {
    final byte[] bytes;
    final byte[] before;
    final Tensor tensor;
    private final int size;

    /**
     * @param finite whether the elements themselves are numbers (to add to) instead of any bits
     */
    Guarded(SplittableRandom rng, DType dtype, boolean finite, long... shape) {
      int n = (int) Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      size = n * dtype.bits() / 8;
      bytes = new byte[size + 2 * GUARD];
      for (int i = 0; i < bytes.length; i++) {
        bytes[i] = (byte) rng.nextInt();
      }
      MemorySegment segment = MemorySegment.ofArray(bytes);
      if (finite) {
        for (int i = 0; i < n; i++) {
          put(segment.asSlice(GUARD), dtype, i, rng.nextFloat() * 2 - 1);
        }
      }
      before = bytes.clone();

      tensor = Tensor.strided(dtype, new HostMemory(segment), GUARD, shape, rowMajor(shape));
    }

    private static long[] rowMajor(long[] shape) {
      long[] strides = new long[shape.length];
      long step = 1;
      for (int d = shape.length - 1; d >= 0; d--) {
        strides[d] = step;
        step *= Math.max(1, shape[d]);
      }
      return strides;
    }

    boolean guardsIntact() {
      return Arrays.equals(bytes, 0, GUARD, before, 0, GUARD)
          && Arrays.equals(bytes, GUARD + size, bytes.length, before, GUARD + size, before.length);
    }

    boolean untouched() {
      return Arrays.equals(bytes, before);
    }

    /** Whether elements {@code from..from+n-1} have the bits they had. */
    boolean untouched(int from, int n) {
      int width = tensor.dtype().bits() / 8;
      int start = GUARD + from * width;
      return Arrays.equals(bytes, start, start + n * width, before, start, start + n * width);
    }

    /** The elements as they were. */
    double[] old() {
      return Tensor.strided(
              tensor.dtype(),
              new HostMemory(MemorySegment.ofArray(before)),
              GUARD,
              tensor.shape(),
              rowMajor(tensor.shape()))
          .toDoubles();
    }
  }
}
