package io.moe4j.reference;

import io.moe4j.api.config.Activation;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import org.jspecify.annotations.Nullable;

/** Linear maps, LoRA deltas and activation functions in float64. Stateless. */
public final class ReferenceMath {
  private static final ValueLayout.OfFloat F32 =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort B16 =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  /** Rows that are multiplied together. */
  private static final int ROWS = 4;

  private ReferenceMath() {}

  /**
   * {@return {@code matrix . x}}
   *
   * @param matrix host tensor {@code [out, in]} of any floating dtype and any strides
   * @param x {@code [in]}
   */
  public static double[] multiply(Tensor matrix, double[] x) {
    if (matrix.dims() != 2 || matrix.size(1) != x.length) {
      throw new IllegalArgumentException(
          "matrix is " + matrix + ", must be [out, " + x.length + "] to multiply x");
    }
    if (!(matrix.memory() instanceof HostMemory(MemorySegment segment, var _))) {
      throw new IllegalArgumentException(matrix + " is on a device; the reference reads the host");
    }
    double[] y = new double[Math.toIntExact(matrix.size(0))];
    int o = 0;
    for (; o + ROWS <= y.length; o += ROWS) {
      dotRows(matrix, segment, o, x, y);
    }
    for (; o < y.length; o++) {
      y[o] = dotRow(matrix, segment, o, x);
    }
    return y;
  }

  /**
   * {@return {@code weight . x} of a weight that may be quantised}
   *
   * @param weight {@code [out, in]} in host memory
   * @param x {@code [in]}
   */
  public static double[] multiply(Weight weight, double[] x) {
    if (weight.isPlain()) {
      return multiply(weight.plain(), x);
    }
    double[] y = new double[Math.toIntExact(weight.out())];
    for (int o = 0; o < y.length; o++) {
      double[] row = Dequantize.row(weight, o);
      for (int i = 0; i < x.length; i++) {
        y[o] += row[i] * x[i];
      }
    }
    return y;
  }

  /**
   * {@link #ROWS} rows of a matrix times a vector: sums that do not wait for each other, each in
   * the order of {@link #dotRow}.
   */
  private static void dotRows(
      Tensor matrix, MemorySegment segment, int row, double[] x, double[] y) {
    long bytes = matrix.dtype().bits() / Byte.SIZE;
    long at = matrix.byteOffset() + row * matrix.stride(0) * bytes;
    long next = matrix.stride(0) * bytes;
    long step = matrix.stride(1) * bytes;
    double s0 = 0;
    double s1 = 0;
    double s2 = 0;
    double s3 = 0;
    switch (matrix.dtype()) {
      case F32 -> {
        for (int i = 0; i < x.length; i++) {
          long a = at + i * step;
          s0 += (double) segment.get(F32, a) * x[i];
          s1 += (double) segment.get(F32, a + next) * x[i];
          s2 += (double) segment.get(F32, a + 2 * next) * x[i];
          s3 += (double) segment.get(F32, a + 3 * next) * x[i];
        }
      }
      case BF16 -> {
        for (int i = 0; i < x.length; i++) {
          long a = at + i * step;
          s0 += bf16(segment, a) * x[i];
          s1 += bf16(segment, a + next) * x[i];
          s2 += bf16(segment, a + 2 * next) * x[i];
          s3 += bf16(segment, a + 3 * next) * x[i];
        }
      }
      default -> {
        s0 = dotRow(matrix, segment, row, x);
        s1 = dotRow(matrix, segment, row + 1, x);
        s2 = dotRow(matrix, segment, row + 2, x);
        s3 = dotRow(matrix, segment, row + 3, x);
      }
    }
    y[row] = s0;
    y[row + 1] = s1;
    y[row + 2] = s2;
    y[row + 3] = s3;
  }

  private static double bf16(MemorySegment segment, long at) {
    return Float.intBitsToFloat(segment.get(B16, at) << 16);
  }

  /**
   * One row of a matrix times a vector. The loops differ only in how an element is read; {@link
   * Tensor#get} would do for all of them, an order of magnitude slower.
   */
  private static double dotRow(Tensor matrix, MemorySegment segment, int row, double[] x) {
    long bytes = matrix.dtype().bits() / Byte.SIZE;
    long at = matrix.byteOffset() + row * matrix.stride(0) * bytes;
    long step = matrix.stride(1) * bytes;
    double sum = 0;
    switch (matrix.dtype()) {
      case F32 -> {
        for (int i = 0; i < x.length; i++) {
          sum += (double) segment.get(F32, at + i * step) * x[i];
        }
      }
      case BF16 -> {
        for (int i = 0; i < x.length; i++) {
          sum += bf16(segment, at + i * step) * x[i];
        }
      }
      case F16 -> {
        for (int i = 0; i < x.length; i++) {
          sum += (double) Float.float16ToFloat(segment.get(B16, at + i * step)) * x[i];
        }
      }
      default -> {
        for (int i = 0; i < x.length; i++) {
          sum += matrix.get(row, i) * x[i];
        }
      }
    }
    return sum;
  }

  /**
   * Adds a bias in place.
   *
   * @param y {@code [out]}, changed
   * @param bias {@code [out]}, or null for none
   */
  public static void addBias(double[] y, @Nullable Tensor bias) {
    if (bias != null) {
      for (int o = 0; o < y.length; o++) {
        y[o] += bias.get(o);
      }
    }
  }

  /**
   * Adds {@code B . (A . x)} in place.
   *
   * @param y {@code [out]}, changed
   * @param lora the token's adapter at this layer, or null for the base model
   * @param target which map {@code y} is the result of
   * @param expert local expert for a routed target, 0 otherwise
   * @param x {@code [in]}, what the map read
   */
  public static void addLora(
      double[] y, @Nullable LoraLayer lora, LoraTarget target, int expert, double[] x) {
    LoraFactors factors = lora == null ? null : lora.get(target);
    if (factors == null) {
      return;
    }
    double[] delta = multiply(factors.b(expert), multiply(factors.a(expert), x));
    for (int o = 0; o < y.length; o++) {
      y[o] += delta[o];
    }
  }

  /**
   * The function between w13 and w2, one element.
   *
   * @param activation kind and parameters, see there for the formulas
   * @param gate gate column; not read by kinds without gate
   * @param up up column
   * @return the value that w2 reads
   */
  public static double activate(Activation activation, double gate, double up) {
    double limit = activation.limit();
    return switch (activation.kind()) {
      case SILU -> silu(Math.min(gate, limit)) * clip(up, limit);
      case GELU -> gelu(gate) * up;
      case GELU_TANH -> geluTanh(gate) * up;
      case SWIGLUOAI -> {
        double g = Math.min(gate, limit);
        yield g * sigmoid(activation.alpha() * g) * (clip(up, limit) + activation.beta());
      }
      case SWIGLU_STEP -> Math.min(silu(gate), limit) * clip(up, limit);
      case SILU_NO_MUL -> silu(up);
      case GELU_NO_MUL -> gelu(up);
      case GELU_TANH_NO_MUL -> geluTanh(up);
      case RELU2_NO_MUL -> {
        double r = Math.max(up, 0);
        yield r * r;
      }
    };
  }

  private static double clip(double v, double limit) {
    return Math.max(-limit, Math.min(v, limit));
  }

  /**
   * {@return the logistic function}
   *
   * @param v any value
   */
  public static double sigmoid(double v) {
    return 1 / (1 + Math.exp(-v));
  }

  private static double silu(double v) {
    return v * sigmoid(v);
  }

  private static double gelu(double v) {
    return 0.5 * v * erfc(-v / Math.sqrt(2));
  }

  private static double geluTanh(double v) {
    return 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v * v * v)));
  }

  /**
   * The complementary error function, to about 1e-14 relative: Kummer's series (all terms positive,
   * Abramowitz and Stegun 7.1.6) near zero, the continued fraction (7.1.14), evaluated from its
   * end, beyond.
   *
   * @param v any value
   * @return {@code 1 - erf(v)}
   */
  static double erfc(double v) {
    if (Double.isNaN(v)) {
      return v;
    }
    if (v < 0) {
      return 2 - erfc(-v);
    }
    if (v > 27) {
      return 0; // below the smallest double
    }
    if (v < 2) {
      double term = v;
      double sum = v;
      for (int n = 1; term > sum * 1e-17; n++) {
        term *= 2 * v * v / (2 * n + 1);
        sum += term;
      }
      return 1 - 2 / Math.sqrt(Math.PI) * Math.exp(-v * v) * sum;
    }
    double fraction = v;
    for (int n = 120; n >= 1; n--) {
      fraction = v + n / 2.0 / fraction;
    }
    return Math.exp(-v * v) / Math.sqrt(Math.PI) / fraction;
  }
}
