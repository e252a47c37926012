package io.moe4j.backend.marlin;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * What {@code repack.cu} must be told to read a weight as its checkpoint stores it. Numbers only;
 * strides are in words (or bytes where codes are bytes), so the tensors may be uploaded as they
 * lie.
 *
 * @param layout where it goes
 * @param codes where codes are
 * @param scales where scales are
 * @param zeros where zero points are, null for a symmetric scheme
 * @param permutation input of the checkpoint for each input of the kernels, so that groups lie
 *     together, -1 = none; null without act-order
 * @param firstInput input of the kernels where the weight's own begin
 * @param inputs of the weight
 */
@SuppressWarnings("ArrayRecordComponent") // made once, read by the repacker alone
record RepackPlan(
    PackedLayout layout,
    Codes codes,
    Scales scales,
    @Nullable Codes zeros,
    int @Nullable [] permutation,
    long firstInput,
    long inputs) {
  /** Scale types of {@code repack.cu}, in its order. */
  private static final DType[] SCALE_TYPES = {
    DType.F32, DType.F16, DType.BF16, DType.F8_E4M3, DType.F8_E8M0
  };

  private static final int SIGN = 0x80;

  /**
   * Codes of a matrix {@code [rows, columns]}, several in a word.
   *
   * @param columnStride words from one (group of) column(s) to the next
   * @param rowStride the same of rows
   * @param wordBytes 1 or 4
   * @param bits of a code
   * @param alongColumns whether the codes of a word are neighbours along the columns
   * @param awq whether the eight codes of a word are in AWQ's order
   * @param flip xor'ed to a code
   * @param offset added to a code after that
   */
  record Codes(
      long columnStride,
      long rowStride,
      int wordBytes,
      int bits,
      boolean alongColumns,
      boolean awq,
      int flip,
      int offset) {}

  /**
   * Scales {@code [rows, groups]}.
   *
   * @param rowStride elements from one row of scales to the next
   * @param groupStride elements from one group to the next
   * @param type code of the dtype in {@code repack.cu}
   * @param rowsAScale outputs that share a row of scales
   * @param group inputs of a group
   */
  record Scales(long rowStride, long groupStride, int type, long rowsAScale, long group) {}

  /**
   * {@return the plan of a weight}
   *
   * @param weight quantised
   * @throws IllegalArgumentException naming the tensor that the kernels cannot read
   */
  static RepackPlan of(Weight weight) {
    return of(weight, permutation(weight));
  }

  /** {@return the plan without its permutation}: only how tensors lie */
  static RepackPlan unordered(Weight weight) {
    return of(weight, null);
  }

  private static RepackPlan of(Weight weight, int @Nullable [] permutation) {
    QuantScheme scheme = weight.scheme();
    PackedLayout layout = PackedLayout.of(scheme, weight.out(), weight.in());
    Tensor scales = weight.scales().orElseThrow();
    int columns = scheme.scaleColumns();
    Scales scaleSource =
        new Scales(
            scales.stride(0),
            scales.stride(1),
            scaleType(weight, scales),
            scheme.scaleRows() == QuantScheme.ALL ? weight.out() : scheme.scaleRows(),
            columns == QuantScheme.ALL ? weight.in() : columns);
    boolean signed = weight.packing() == Packing.DENSE && layout.code() == PackedLayout.Code.U8;
    int flip = signed ? SIGN : 0;
    Codes zeros = null;
    if (weight.zeroPoints().isPresent()) {
      zeros =
          codes(
              weight.name() + " zero points",
              weight.zeroPoints().get(),
              weight.zeroPacking(),
              layout.code().bits(),
              flip,
              weight.zeroOffset());
    }
    return new RepackPlan(
        layout,
        codes(weight.name(), weight.values(), weight.packing(), layout.code().bits(), flip, 0),
        scaleSource,
        zeros,
        permutation,
        0,
        weight.in());
  }

  /**
   * The same weight between zeros, for kernels whose inputs are those of several weights.
   *
   * @param first input of the kernels where its own begin, whole groups
   * @param total inputs of the kernels
   * @return the plan
   */
  RepackPlan between(long first, long total) {
    int[] wide = new int[Math.toIntExact(total)];
    Arrays.fill(wide, -1);
    for (int i = 0; i < inputs; i++) {
      int from = Math.toIntExact(firstInput) + i;
      wide[Math.toIntExact(first) + i] = permutation == null ? from : permutation[from];
    }
    return new RepackPlan(layout.widened(total), codes, scales, zeros, wide, first, inputs);
  }

  private static int scaleType(Weight weight, Tensor scales) {
    int type = Arrays.asList(SCALE_TYPES).indexOf(scales.dtype());
    if (type < 0) {
      throw new IllegalArgumentException(
          weight.name()
              + " scales are "
              + scales
              + ", must be one of "
              + Arrays.toString(SCALE_TYPES));
    }
    return type;
  }

  private static Codes codes(
      String name, Tensor t, Packing packing, int bits, int flip, int offset) {
    long row = t.stride(0);
    long column = t.stride(1);
    if (packing != Packing.DENSE) {
      boolean along = packing == Packing.WORDS_ALONG_IN;
      boolean awq = packing == Packing.WORDS_ALONG_OUT_AWQ;
      return new Codes(column, row, Integer.BYTES, bits, along, awq, flip, offset);
    }
    if (t.dtype() == DType.F4) {
      // Two codes a byte, the first in the low half; strides count codes.
      if (column != 1 || row % 2 != 0) {
        throw new IllegalArgumentException(
            name + " is " + t + " with strides " + row + ", " + column + ", must be rows of bytes");
      }
      return new Codes(1, row / 2, 1, bits, true, false, flip, offset);
    }
    if (t.dtype().byteSize(1) != 1) {
      throw new IllegalArgumentException(name + " is " + t + ", must be of one byte an element");
    }
    return new Codes(column, row, 1, Byte.SIZE, true, false, flip, offset);
  }

  private static int @Nullable [] permutation(Weight weight) {
    if (weight.groupIndex().isEmpty()) {
      return null;
    }
    int[] group = weight.groupIndex().get().toInts();
    int size = weight.scheme().scaleColumns();
    int groups = Math.ceilDiv(group.length, size);
    int[] next = new int[groups];
    for (int g = 0; g < groups; g++) {
      next[g] = g * size;
    }
    int[] order = new int[group.length];
    for (int i = 0; i < group.length; i++) {
      int g = group[i];
      if (g < 0 || g >= groups || next[g] >= Math.min(group.length, (g + 1) * size)) {
        throw new IllegalArgumentException(
            weight.name()
                + " group index: input "
                + i
                + " is in group "
                + g
                + "; there are "
                + groups
                + " groups of "
                + size
                + " inputs, the last may be shorter");
      }
      order[next[g]++] = i;
    }
    return order;
  }
}
