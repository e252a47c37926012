package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.ExpertWeights.Expert;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.stream.IntStream;

/**
 * MXFP4 weights as BF16, which holds every product of a 4-bit float and a power of two exactly.
 * Takes four times the memory of the file; in return the kernels are those of BF16 weights.
 */
final class Mxfp4 {
  private static final int GROUP = 32;
  private static final float[] VALUES = {
    0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0f, -0.5f, -1, -1.5f, -2, -3, -4, -6
  };

  private Mxfp4() {}

  /**
   * {@return plain experts}
   *
   * @param weights with scales
   * @param arena where they go
   */
  static ExpertWeights dequantise(ExpertWeights weights, Arena arena) {
    return new ExpertWeights(
        IntStream.range(0, weights.numExperts())
            .parallel()
            .mapToObj(e -> dequantise(weights.expert(e), arena))
            .toList());
  }

  private static Expert dequantise(Expert x, Arena arena) {
    Weight gate = x.gate();
    return Expert.plain(
            gate == null ? null : matrix(gate, arena),
            matrix(x.up(), arena),
            matrix(x.down(), arena))
        .withBias(x.gateBias(), x.upBias(), x.downBias());
  }

  private static Tensor matrix(Weight weight, Arena arena) {
    Tensor w = weight.values();
    Tensor scale = weight.scales().orElseThrow();
    int rows = Math.toIntExact(w.size(0));
    int cols = Math.toIntExact(w.size(1));
    if (w.dtype() != DType.F4
        || scale.dtype() != DType.F8_E8M0
        || w.stride(1) != 1
        || scale.stride(1) != 1
        || cols != GROUP * scale.size(1)) {
      throw new IllegalArgumentException(
          "weights are "
              + w
              + " with scales "
              + scale
              + "; mxfp4 is F4 with an F8_E8M0 scale for 32 columns, dense along a row");
    }
    MemorySegment from = Rows.segment(w);
    MemorySegment factors = Rows.segment(scale);
    MemorySegment to = arena.allocate(2L * rows * cols, 64);
    for (int r = 0; r < rows; r++) {
      long at = w.byteOffset() + r * w.stride(0) / 2;
      long factorAt = scale.byteOffset() + r * scale.stride(0);
      long out = 2L * r * cols;
      for (int g = 0; g < cols / GROUP; g++) {
        float factor = power(factors.get(ValueLayout.JAVA_BYTE, factorAt + g));
        for (int i = 0; i < GROUP / 2; i++) {
          byte two = from.get(ValueLayout.JAVA_BYTE, at++);
          put(to, out, VALUES[two & 15] * factor);
          put(to, out + 2, VALUES[two >> 4 & 15] * factor);
          out += 4;
        }
      }
    }
    return Tensor.of(DType.BF16, to, rows, cols);
  }

  private static void put(MemorySegment to, long at, float value) {
    to.set(ValueLayout.JAVA_SHORT_UNALIGNED, at, Tensor.toBFloat16(value));
  }

  private static float power(byte exponent) {
    int e = Byte.toUnsignedInt(exponent);
    return e == 255 ? Float.NaN : Math.scalb(1f, e - 127);
  }
}
