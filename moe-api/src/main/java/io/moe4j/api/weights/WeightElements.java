package io.moe4j.api.weights;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.Arrays;
import java.util.OptionalLong;
import java.util.stream.LongStream;
import org.jspecify.annotations.Nullable;

/** The elements that the codes of a weight stand for; the formula is {@link Weight}'s. */
final class WeightElements {
  private static final int[] NO_INDEX = {};
  private static final long NONE = -1;

  private final Weight weight;
  private final Tensor values;
  private final int bits;
  private final int scaleRows;
  private final int scaleColumns;
  private final double global;
  private final int fixedZero;
  private final int[] groupIndex;
  private final @Nullable Tensor scales;
  private final @Nullable Tensor zeros;

  WeightElements(Weight weight) {
    if (!weight.values().isHost()) {
      throw new IllegalStateException(weight + " is on a device; elements are read on the host");
    }
    this.weight = weight;
    QuantScheme scheme = weight.scheme();
    values = weight.values();
    bits = scheme.bits();
    scaleRows = scheme.scaleRows();
    scaleColumns = scheme.scaleColumns();
    double stored = weight.globalScale().map(t -> t.toDoubles()[0]).orElse(1.0);
    global = weight.dividedByGlobal() ? 1 / stored : stored;
    fixedZero = weight.packing() == Packing.DENSE ? 0 : 1 << (bits - 1);
    groupIndex = weight.groupIndex().map(Tensor::toInts).orElse(NO_INDEX);
    scales = weight.scales().orElse(null);
    zeros = weight.zeroPoints().orElse(null);
  }

  /** All of them, {@code [out, in]}, in memory of their own. */
  Tensor copy(DType dtype) {
    long out = weight.out();
    int in = Math.toIntExact(weight.in());
    Tensor copy =
        Tensor.of(
            dtype,
            Arena.ofAuto().allocate(dtype.byteSize(Math.multiplyExact(out, in)), Long.BYTES),
            out,
            in);
    // The first in the matrix, whichever thread sees one first.
    OptionalLong tooLarge =
        LongStream.range(0, out)
            .parallel()
            .map(o -> {
              double[] row = new double[in];
              read(o, row);
              long first = NONE;
              for (int i = 0; i < in; i++) {
                copy.set(row[i], o, i);
                if (first == NONE && Double.isInfinite(copy.get(o, i)) && Double.isFinite(row[i])) {
                  first = o * in + i;
                }
              }
              return first;
            })
            .filter(element -> element != NONE)
            .min();
    if (tooLarge.isPresent()) {
      long o = tooLarge.getAsLong() / in;
      int i = Math.toIntExact(tooLarge.getAsLong() % in);
      double[] row = new double[in];
      read(o, row);
      throw tooLarge(row[i], o, i, dtype);
    }
    return copy;
  }

  private IllegalArgumentException tooLarge(double value, long out, int in, DType dtype) {
    return new IllegalArgumentException(
        "%s, element [%d, %d] is %s, too large for %s, whose largest number is %s"
            .formatted(weight, out, in, value, dtype, dtype == DType.F16 ? "65504" : "3.4E38"));
  }

  private void read(long out, double[] row) {
    if (scales == null) {
      for (int i = 0; i < row.length; i++) {
        row[i] = values.get(out, i);
      }
      return;
    }
    double[] groupScales = new double[Math.toIntExact(scales.size(1))];
    double[] groupZeros = new double[groupScales.length];
    Arrays.fill(groupZeros, fixedZero);
    long scaleRow = scaleRows == QuantScheme.ALL ? 0 : out / scaleRows;
    for (int g = 0; g < groupScales.length; g++) {
      groupScales[g] = scales.get(scaleRow, g) * global;
      if (zeros != null) {
        groupZeros[g] = code(zeros, weight.zeroPacking(), out, g) + weight.zeroOffset();
      }
    }
    for (int i = 0; i < row.length; i++) {
      int g =
          groupIndex.length > 0
              ? groupIndex[i]
              : scaleColumns == QuantScheme.ALL ? 0 : i / scaleColumns;
      row[i] = (code(values, weight.packing(), out, i) - groupZeros[g]) * groupScales[g];
    }
  }

  private double code(Tensor t, Packing packing, long out, long in) {
    int perWord = bits == 0 ? 1 : Integer.SIZE / bits;
    return switch (packing) {
      case DENSE -> t.get(out, in);
      case WORDS_ALONG_IN -> field((int) t.get(out, in / perWord), packing, out, in);
      case WORDS_ALONG_OUT, WORDS_ALONG_OUT_AWQ ->
          field((int) t.get(out / perWord, in), packing, out, in);
    };
  }

  private int field(int word, Packing packing, long out, long in) {
    return (word >>> packing.shift(out, in, bits)) & ((1 << bits) - 1);
  }
}
