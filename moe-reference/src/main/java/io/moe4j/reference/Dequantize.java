package io.moe4j.reference;

import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;

/**
 * Quantised weights as float64: the formula of {@link Weight}, one element at a time, for every
 * scheme and packing. The truth that backends' own unpacking is compared with. Stateless; reads
 * host memory.
 *
 * @since 0.2.0
 */
public final class Dequantize {
  private Dequantize() {}

  /**
   * {@return the whole weight, {@code [out][in]}}
   *
   * @param weight plain or quantised
   */
  public static double[][] all(Weight weight) {
    double[][] rows = new double[Math.toIntExact(weight.out())][];
    for (int o = 0; o < rows.length; o++) {
      rows[o] = row(weight, o);
    }
    return rows;
  }

  /**
   * {@return one output's weights, {@code [in]}}
   *
   * @param weight plain or quantised
   * @param out {@code 0..out-1}
   */
  public static double[] row(Weight weight, long out) {
    double[] row = new double[Math.toIntExact(weight.in())];
    for (int i = 0; i < row.length; i++) {
      row[i] = value(weight, out, i);
    }
    return row;
  }

  /**
   * {@return one element}
   *
   * @param weight plain or quantised
   * @param out {@code 0..out-1}
   * @param in {@code 0..in-1}
   */
  public static double value(Weight weight, long out, long in) {
    if (weight.isPlain()) {
      return weight.values().get(out, in);
    }
    int scaleRows = weight.scheme().scaleRows();
    long scaleRow = scaleRows == 0 ? 0 : out / scaleRows;
    long group = group(weight, in);
    double scale = weight.scales().orElseThrow().get(scaleRow, group) * global(weight);
    return (code(weight, out, in) - zeroPoint(weight, out, group)) * scale;
  }

  private static long group(Weight weight, long in) {
    if (weight.groupIndex().isPresent()) {
      return (long) weight.groupIndex().get().get(in);
    }
    int scaleColumns = weight.scheme().scaleColumns();
    return scaleColumns == 0 ? 0 : in / scaleColumns;
  }

  private static double global(Weight weight) {
    if (weight.globalScale().isEmpty()) {
      return 1;
    }
    double global = weight.globalScale().get().toDoubles()[0];
    return weight.dividedByGlobal() ? 1 / global : global;
  }

  private static double code(Weight weight, long out, long in) {
    return field(weight.values(), weight.packing(), weight.scheme().bits(), out, in);
  }

  private static double field(Tensor t, Packing packing, int bits, long out, long in) {
    if (packing == Packing.DENSE) {
      return t.get(out, in);
    }
    int perWord = Integer.SIZE / bits;
    boolean alongIn = packing == Packing.WORDS_ALONG_IN;
    int word = (int) t.get(alongIn ? out : out / perWord, alongIn ? in / perWord : in);
    return word >>> packing.shift(out, in, bits) & (1 << bits) - 1;
  }

  private static double zeroPoint(Weight weight, long out, long group) {
    Format format = weight.scheme().format();
    int bits = weight.scheme().bits();
    if (weight.zeroPoints().isPresent()) {
      double stored = field(weight.zeroPoints().get(), weight.zeroPacking(), bits, out, group);
      return stored + weight.zeroOffset();
    }
    boolean unsigned = format == Format.INT4 || format == Format.INT8;
    return unsigned && weight.packing() != Packing.DENSE ? 1 << bits - 1 : 0;
  }
}
