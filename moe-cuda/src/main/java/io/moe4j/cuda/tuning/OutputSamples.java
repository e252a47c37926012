package io.moe4j.cuda.tuning;

import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * Rows of several outputs on the host, all of them or some from everywhere, to compare results of
 * the same forwards. Immutable.
 */
final class OutputSamples {
  static final OutputSamples NONE = new OutputSamples(List.of());

  private static final int SLABS = 16;
  private static final int SLAB_ROWS = 16;

  /**
   * Some rows of one output.
   *
   * @param output which
   * @param from first row
   * @param rows {@code [n, H]}
   */
  private record Slab(int output, long from, Tensor rows) {}

  private final List<Slab> slabs;

  private OutputSamples(List<Slab> slabs) {
    this.slabs = slabs;
  }

  /** {@return every row} */
  static OutputSamples all(Device device, List<Tensor> outputs) {
    List<Slab> slabs = new ArrayList<>();
    for (int o = 0; o < outputs.size(); o++) {
      for (long from = 0; from < outputs.get(o).size(0); from += SLAB_ROWS) {
        slabs.add(slab(device, outputs, o, from));
      }
    }
    device.defaultStream().synchronize();
    return new OutputSamples(slabs);
  }

  /** {@return at most {@value #SLABS} times {@value #SLAB_ROWS} rows of each output} */
  static OutputSamples some(Device device, List<Tensor> outputs) {
    List<Slab> slabs = new ArrayList<>();
    for (int o = 0; o < outputs.size(); o++) {
      long all = Math.ceilDiv(outputs.get(o).size(0), SLAB_ROWS);
      long step = Math.max(1, all / SLABS);
      for (long i = all - 1; i >= 0; i -= step) {
        slabs.add(slab(device, outputs, o, i * SLAB_ROWS));
      }
    }
    device.defaultStream().synchronize();
    return new OutputSamples(slabs);
  }

  private static Slab slab(Device device, List<Tensor> outputs, int output, long from) {
    Tensor there = outputs.get(output);
    long n = Math.min(SLAB_ROWS, there.size(0) - from);
    Tensor part = there.narrow(0, from, n);
    byte[] bytes = new byte[Math.toIntExact(part.dtype().byteSize(part.elementCount()))];
    Tensor host = Tensor.of(part.dtype(), MemorySegment.ofArray(bytes), part.shape());
    device.copy(part, host, device.defaultStream());
    return new Slab(output, from, host);
  }

  /** {@return whether both hold the same rows, bit for bit} */
  boolean sameBits(OutputSamples other) {
    if (slabs.size() != other.slabs.size()) {
      return false;
    }
    for (int i = 0; i < slabs.size(); i++) {
      Slab a = slabs.get(i);
      Slab b = other.slabs.get(i);
      if (a.output != b.output
          || a.from != b.from
          || a.rows.segment().mismatch(b.rows.segment()) >= 0) {
        return false;
      }
    }
    return true;
  }

  /**
   * Whether another result is one of the same forwards, given that sums may be taken in another
   * order: what is rounded between the steps and at the end then differs by a unit here and there,
   * which in the root mean square stays below two unit roundoffs of the dtype. Mistakes are of
   * another order.
   *
   * @param other rows that this has as well
   * @return how it differs; empty if it does not
   */
  Optional<String> differs(OutputSamples other) {
    double error = 0;
    double norm = 0;
    double most = 0;
    for (Slab theirs : other.slabs) {
      Slab ours =
          slabs.stream()
              .filter(s -> s.output == theirs.output && s.from == theirs.from)
              .findFirst()
              .orElseThrow(() -> new IllegalArgumentException("rows that are not known"));
      most = 2 * unitRoundoff(theirs.rows.dtype());
      if (ours.rows.segment().mismatch(theirs.rows.segment()) < 0) {
        norm += Arrays.stream(values(ours.rows)).filter(Double::isFinite).map(v -> v * v).sum();
        continue;
      }
      double[] a = values(ours.rows);
      double[] b = values(theirs.rows);
      for (int i = 0; i < a.length; i++) {
        if (!Double.isFinite(a[i]) || !Double.isFinite(b[i])) {
          if (Double.compare(a[i], b[i]) != 0) {
            return Optional.of(
                "row "
                    + (theirs.from + i / (int) theirs.rows.size(1))
                    + " has "
                    + b[i]
                    + " where the built-in choice gives "
                    + a[i]);
          }
          continue;
        }
        error += (a[i] - b[i]) * (a[i] - b[i]);
        norm += a[i] * a[i];
      }
    }
    double relative = Math.sqrt(error / Math.max(norm, Double.MIN_NORMAL));
    return relative <= most
        ? Optional.empty()
        : Optional.of(
            String.format(
                Locale.ROOT,
                "its result is off by %.2g of the built-in choice's, more than rounding (%.2g)",
                relative,
                most));
  }

  /** {@return the elements of rows as they were copied, one after the other} */
  private static double[] values(Tensor rows) {
    if (rows.dtype() != DType.BF16 && rows.dtype() != DType.F16) {
      return rows.toDoubles();
    }
    boolean bf16 = rows.dtype() == DType.BF16;
    MemorySegment segment = rows.segment();
    double[] values = new double[Math.toIntExact(rows.elementCount())];
    for (int i = 0; i < values.length; i++) {
      short bits = segment.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i);
      values[i] = bf16 ? Float.intBitsToFloat(bits << Short.SIZE) : Float.float16ToFloat(bits);
    }
    return values;
  }

  private static double unitRoundoff(DType dtype) {
    return switch (dtype) {
      case BF16 -> 0x1p-8;
      case F16 -> 0x1p-11;
      default -> 0x1p-8; // what passes between the steps is of 16 bits, whatever the output is
    };
  }
}
