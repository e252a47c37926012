package io.moe4j.tck;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * One way in which checkpoints keep a quantised linear map. Makes random weights of it: every code
 * occurs, neighbouring groups have different scales, and fields of words past the last code hold
 * garbage.
 *
 * @param scheme format, groups, symmetry, act-order
 * @param packing how codes lie in their tensor
 * @param transposed whether codes, scales and zero points are transposed views (GPTQ, AWQ)
 * @param scales dtype of the scales
 * @param zeros how zero points lie in their tensor; null = symmetric
 * @param zeroOffset what is added to a stored zero point
 * @param dividedByGlobal whether scales are divided by the global scale of NVFP4
 */
record Quantised(
    QuantScheme scheme,
    Packing packing,
    boolean transposed,
    DType scales,
    @Nullable Packing zeros,
    int zeroOffset,
    boolean dividedByGlobal) {

  /** {@return codes as elements, or words along the inputs, and scales of one dtype} */
  static Quantised of(QuantScheme scheme, Packing packing, DType scales) {
    return new Quantised(scheme, packing, false, scales, null, 0, false);
  }

  Quantised asTransposed() {
    return new Quantised(scheme, packing, true, scales, zeros, zeroOffset, dividedByGlobal);
  }

  /** {@return the same with stored zero points} */
  Quantised withZeros(Packing zeroPacking, int offset) {
    QuantScheme asymmetric = scheme.toBuilder().symmetric(false).build();
    return new Quantised(
        asymmetric, packing, transposed, scales, zeroPacking, offset, dividedByGlobal);
  }

  /** {@return the same with a group index} */
  Quantised withActOrder() {
    QuantScheme ordered = scheme.toBuilder().actOrder(true).build();
    return new Quantised(ordered, packing, transposed, scales, zeros, zeroOffset, dividedByGlobal);
  }

  Quantised divided() {
    return new Quantised(scheme, packing, transposed, scales, zeros, zeroOffset, true);
  }

  /** {@return a random weight {@code [out, in]} whose elements are about {@code 1 / sqrt(in)}} */
  Weight weight(String name, Data data, int out, int in) {
    int bits = scheme.bits();
    Weight.Builder b =
        Weight.builder(name, scheme, out, in, codes(data, packing.shape(out, in, bits)), packing);
    long groups = scheme.scaleColumnCount(in);
    double unit = 1 / (Math.sqrt(in) * codeDeviation());
    if (scheme.scaleFormat() == ScaleFormat.E4M3) {
      double global = unit * (0.5 + data.uniform());
      Tensor t = Data.empty(DType.F32, 1);
      t.set(dividedByGlobal ? 1 / global : global, 0);
      b.globalScale(t, dividedByGlobal);
    }
    b.scales(scales(data, unit, scheme.scaleRowCount(out), groups));
    if (zeros != null) {
      b.zeroPoints(zeroPoints(data, out, groups, zeros), zeros, zeroOffset);
    }
    if (scheme.actOrder()) {
      b.groupIndex(groupIndex(data, in));
    }
    if (scheme.activations().scaling() == ActivationQuant.Scaling.STATIC) {
      Tensor t = Data.empty(DType.F32, 1);
      t.set(0.02, 0);
      b.inputScale(t);
    }
    return b.build();
  }

  /** The root mean square of a random code less its zero point. */
  private double codeDeviation() {
    return switch (scheme.format()) {
      case INT4 -> 5;
      case INT8 -> 80;
      case FP8 -> 100;
      case FP4 -> 3;
      default -> throw new IllegalStateException(scheme + " has no codes");
    };
  }

  private Tensor codes(Data data, long[] shape) {
    if (packing != Packing.DENSE) {
      return words(data, 0, shape);
    }
    return switch (scheme.format()) {
      case INT8 -> data.bytes(DType.I8, -128, 127, shape);
      case FP4 -> data.bytes(DType.F4, 0, 255, shape);
      default -> {
        Tensor t = data.bytes(DType.F8_E4M3, 0, 255, shape);
        var bytes = t.segment();
        for (long i = 0; i < bytes.byteSize(); i++) {
          byte code = bytes.get(ValueLayout.JAVA_BYTE, i);
          if ((code & 0x7f) == 0x7f) { // NaN
            bytes.set(ValueLayout.JAVA_BYTE, i, (byte) (code & 0xb0));
          }
        }
        yield t;
      }
    };
  }

  /** Words with fields of {@code 0..2^bits - 1 - spare}, in the order of memory that is stored. */
  private Tensor words(Data data, int spare, long[] shape) {
    int bits = scheme.bits();
    Tensor t =
        transposed
            ? Data.empty(DType.I32, shape[1], shape[0])
            : Data.empty(DType.I32, shape[0], shape[1]);
    for (long r = 0; r < t.size(0); r++) {
      for (long c = 0; c < t.size(1); c++) {
        int word = 0;
        for (int shift = 0; shift < Integer.SIZE; shift += bits) {
          word |= data.below((1 << bits) - spare) << shift;
        }
        t.set(word, r, c);
      }
    }
    return transposed ? t.transpose(0, 1) : t;
  }

  private Tensor scales(Data data, double unit, long rows, long columns) {
    return switch (scheme.scaleFormat()) {
      case E8M0 -> {
        int middle = 127 + Math.getExponent(unit);
        yield data.bytes(DType.F8_E8M0, middle - 2, middle + 1, rows, columns);
      }
      case E4M3 -> data.bytes(DType.F8_E4M3, 0x30, 0x40, rows, columns); // 0.5 to 2
      case FLOAT -> {
        Tensor t =
            transposed ? Data.empty(scales, columns, rows) : Data.empty(scales, rows, columns);
        for (long r = 0; r < t.size(0); r++) {
          for (long c = 0; c < t.size(1); c++) {
            t.set(unit * (0.4 + 1.2 * data.uniform()), r, c);
          }
        }
        yield transposed ? t.transpose(0, 1) : t;
      }
    };
  }

  private Tensor zeroPoints(Data data, long out, long groups, Packing zeroPacking) {
    int bits = scheme.bits();
    if (zeroPacking == Packing.DENSE) {
      return data.bytes(DType.I8, 0, Math.min(127, (1 << bits) - 1), out, groups);
    }
    // what is stored and the offset together stay a code: files disagree about what is beyond
    return words(data, zeroOffset, zeroPacking.shape(out, groups, bits));
  }

  /** As many inputs in each group as without an index, in random order. */
  private Tensor groupIndex(Data data, int in) {
    int[] group = new int[in];
    for (int i = 0; i < in; i++) {
      group[i] = i / scheme.scaleColumns();
    }
    for (int i = in - 1; i > 0; i--) {
      int j = data.below(i + 1);
      int swap = group[i];
      group[i] = group[j];
      group[j] = swap;
    }
    Tensor t = Data.empty(DType.I32, in);
    for (int i = 0; i < in; i++) {
      t.set(group[i], i);
    }
    return t;
  }
}
