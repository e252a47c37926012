package io.moe4j.api.weights;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/** Rows and columns of a weight, with the scales that belong to them; nothing is copied. */
final class WeightSlices {
  private final Weight weight;
  private final QuantScheme scheme;

  WeightSlices(Weight weight) {
    this.weight = weight;
    this.scheme = weight.scheme();
  }

  Weight outputs(long start, long count) {
    requireInside("outputs", start, count, weight.out());
    Tensor values = rows(weight.values(), weight.packing(), start, count);
    Weight.Builder b =
        Weight.builder(weight.name(), scheme, count, weight.in(), values, weight.packing());
    Tensor scales = weight.scales().orElse(null);
    if (scales != null && scheme.scaleRows() != QuantScheme.ALL) {
      int block = scheme.scaleRows();
      requireBorders("outputs", "scales", start, count, weight.out(), block);
      scales = scales.narrow(0, start / block, Math.ceilDiv(count, block));
    }
    Tensor zeros = weight.zeroPoints().orElse(null);
    if (zeros != null) {
      zeros = rows(zeros, weight.zeroPacking(), start, count);
    }
    weight.groupIndex().ifPresent(b::groupIndex);
    return finish(b, scales, zeros);
  }

  Weight inputs(long start, long count) {
    requireInside("inputs", start, count, weight.in());
    if (scheme.actOrder() && count < weight.in()) {
      throw new IllegalArgumentException(
          weight
              + " is act-order: the inputs of a group lie anywhere, inputs "
              + range(start, count)
              + " have no scales of their own");
    }
    Tensor values = columns(weight.values(), weight.packing(), start, count, weight.in(), "codes");
    Weight.Builder b =
        Weight.builder(weight.name(), scheme, weight.out(), count, values, weight.packing());
    Tensor scales = weight.scales().orElse(null);
    Tensor zeros = weight.zeroPoints().orElse(null);
    if (scheme.scaleColumns() != QuantScheme.ALL) {
      int group = scheme.scaleColumns();
      requireBorders("inputs", "groups", start, count, weight.in(), group);
      long first = start / group;
      long groups = Math.ceilDiv(count, group);
      if (scales != null) {
        scales = scales.narrow(1, first, groups);
      }
      if (zeros != null) {
        long all = scheme.scaleColumnCount(weight.in());
        zeros = columns(zeros, weight.zeroPacking(), first, groups, all, "zero points");
      }
    }
    weight.groupIndex().ifPresent(b::groupIndex);
    return finish(b, scales, zeros);
  }

  private Weight finish(Weight.Builder b, @Nullable Tensor scales, @Nullable Tensor zeros) {
    if (scales != null) {
      b.scales(scales);
    }
    if (zeros != null) {
      b.zeroPoints(zeros, weight.zeroPacking(), weight.zeroOffset());
    }
    weight.globalScale().ifPresent(t -> b.globalScale(t, weight.dividedByGlobal()));
    weight.inputScale().ifPresent(b::inputScale);
    return b.build();
  }

  private Tensor rows(Tensor t, Packing packing, long start, long count) {
    return switch (packing) {
      case DENSE, WORDS_ALONG_IN -> t.narrow(0, start, count);
      case WORDS_ALONG_OUT, WORDS_ALONG_OUT_AWQ -> {
        int word = Integer.SIZE / scheme.bits();
        requireBorders("outputs", "words of codes", start, count, weight.out(), word);
        yield t.narrow(0, start / word, Math.ceilDiv(count, word));
      }
    };
  }

  private Tensor columns(Tensor t, Packing packing, long start, long count, long all, String what) {
    return switch (packing) {
      case DENSE, WORDS_ALONG_OUT, WORDS_ALONG_OUT_AWQ -> t.narrow(1, start, count);
      case WORDS_ALONG_IN -> {
        int word = Integer.SIZE / scheme.bits();
        requireBorders("inputs", "words of " + what, start, count, all, word);
        yield t.narrow(1, start / word, Math.ceilDiv(count, word));
      }
    };
  }

  private static String range(long start, long count) {
    return start + ".." + (start + count - 1);
  }

  private void requireInside(String side, long start, long count, long all) {
    if (start < 0 || count < 1 || start > all - count) {
      throw new IllegalArgumentException(
          side + " " + range(start, count) + " are asked of " + weight + ", which has " + all);
    }
  }

  private void requireBorders(
      String side, String what, long start, long count, long all, int unit) {
    if (start % unit != 0 || (count % unit != 0 && start + count != all)) {
      throw new IllegalArgumentException(
          weight
              + ": "
              + side
              + " "
              + range(start, count)
              + " cut through "
              + what
              + " of "
              + unit);
    }
  }
}
