package io.moe4j.tck;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import java.util.ArrayList;
import java.util.List;
import java.util.function.UnaryOperator;

/**
 * Backends that read quantised weights wrongly: what they are given is another weight, which the
 * reference then reads rightly.
 */
final class WrongWeights {
  private WrongWeights() {}

  /** The parts of a weight, to be put together differently. */
  private static final class Parts {
    final Weight from;
    QuantScheme scheme;
    Packing packing;
    Tensor values;
    Tensor scales;

    Parts(Weight from) {
      this.from = from;
      this.scheme = from.scheme();
      this.packing = from.packing();
      this.values = from.values();
      this.scales = from.scales().orElseThrow();
    }

    Weight build(int moreZero, boolean reciprocal) {
      Weight.Builder b =
          Weight.builder(from.name(), scheme, from.out(), from.in(), values, packing)
              .scales(scales);
      from.globalScale().ifPresent(g -> b.globalScale(g, from.dividedByGlobal() != reciprocal));
      from.zeroPoints()
          .ifPresent(z -> b.zeroPoints(z, from.zeroPacking(), from.zeroOffset() + moreZero));
      if (scheme.actOrder()) {
        b.groupIndex(from.groupIndex().orElseThrow());
      }
      from.inputScale().ifPresent(b::inputScale);
      return b.build();
    }

    Weight build() {
      return build(0, false);
    }
  }

  private abstract static class Each extends Altered {
    abstract Weight weight(Weight w);

    @Override
    ExpertWeights weights(ExpertWeights weights) {
      UnaryOperator<Weight> change = w -> w.isPlain() ? w : weight(w);
      return new ExpertWeights(
          weights.experts().stream()
              .map(x ->
                  ExpertWeights.Expert.of(
                          x.gate() == null ? null : change.apply(x.gate()),
                          change.apply(x.up()),
                          change.apply(x.down()))
                      .withBias(x.gateBias(), x.upBias(), x.downBias()))
              .toList());
    }
  }

  /** The first GPTQ format read as the second, or the other way round. */
  static final class ZeroPointOffByOne extends Each {
    @Override
    Weight weight(Weight w) {
      return new Parts(w).build(w.zeroOffset() == 0 ? 1 : -1, false);
    }
  }

  /** The last group comes first. */
  static final class GroupOrderReversed extends Each {
    @Override
    Weight weight(Weight w) {
      Parts p = new Parts(w);
      long columns = p.scales.size(1);
      if (p.scales.dtype().bits() >= 16) {
        Tensor reversed = Data.empty(p.scales.dtype(), p.scales.shape());
        for (long r = 0; r < p.scales.size(0); r++) {
          for (long c = 0; c < columns; c++) {
            reversed.set(p.scales.get(r, columns - 1 - c), r, c);
          }
        }
        p.scales = reversed;
      }
      return p.build();
    }
  }

  /** Groups are taken to be consecutive. */
  static final class ActOrderIgnored extends Each {
    @Override
    Weight weight(Weight w) {
      Parts p = new Parts(w);
      p.scheme = w.scheme().toBuilder().actOrder(false).build();
      return p.build();
    }
  }

  /** Fields of AWQ words in natural order. */
  static final class AwqOrderIgnored extends Each {
    @Override
    Weight weight(Weight w) {
      Parts p = new Parts(w);
      if (p.packing == Packing.WORDS_ALONG_OUT_AWQ) {
        p.packing = Packing.WORDS_ALONG_OUT;
      }
      return p.build();
    }
  }

  /** Blocks are counted from the end, as if the short one came first. */
  static final class PartialBlockMisread extends Each {
    @Override
    Weight weight(Weight w) {
      Parts p = new Parts(w);
      if (w.scheme().scaleRows() > 1) {
        // one scale a row, taken from the block that the row is in when counted from the end
        Tensor perRow = Data.empty(DType.F32, w.out(), p.scales.size(1));
        long shift = w.scheme().scaleRowCount(w.out()) * w.scheme().scaleRows() - w.out();
        for (long o = 0; o < w.out(); o++) {
          for (long c = 0; c < perRow.size(1); c++) {
            perRow.set(p.scales.get((o + shift) / w.scheme().scaleRows(), c), o, c);
          }
        }
        p.scheme = w.scheme().toBuilder().group(w.scheme().scaleColumns()).build();
        p.scales = perRow;
      }
      return p.build();
    }
  }

  /** Multiplied where it should be divided, and the other way round. */
  static final class GlobalScaleReciprocal extends Each {
    @Override
    Weight weight(Weight w) {
      return new Parts(w).build(0, w.scheme().scaleFormat() == ScaleFormat.E4M3);
    }
  }

  /** One global scale for gate and up, as fused kernels would like it. */
  static final class GlobalScaleOfGateForUp extends Altered {
    @Override
    ExpertWeights weights(ExpertWeights weights) {
      List<ExpertWeights.Expert> changed = new ArrayList<>();
      for (ExpertWeights.Expert x : weights.experts()) {
        Weight gate = x.gate();
        if (gate == null || gate.globalScale().isEmpty()) {
          changed.add(x);
          continue;
        }
        Weight up =
            Weight.builder(
                    "up",
                    x.up().scheme(),
                    x.up().out(),
                    x.up().in(),
                    x.up().values(),
                    x.up().packing())
                .scales(x.up().scales().orElseThrow())
                .globalScale(gate.globalScale().get(), gate.dividedByGlobal())
                .build();
        changed.add(ExpertWeights.Expert.of(gate, up, x.down()));
      }
      return new ExpertWeights(changed);
    }
  }

  /** Expert e reads the scales of expert e + 1. */
  static final class ScaleOfTheNeighbour extends Altered {
    @Override
    ExpertWeights weights(ExpertWeights weights) {
      int n = weights.numExperts();
      List<ExpertWeights.Expert> changed = new ArrayList<>();
      for (int e = 0; e < n; e++) {
        ExpertWeights.Expert x = weights.expert(e);
        ExpertWeights.Expert y = weights.expert((e + 1) % n);
        Weight gate = x.gate();
        changed.add(
            ExpertWeights.Expert.of(
                    gate == null || y.gate() == null ? null : scaled(gate, y.gate()),
                    scaled(x.up(), y.up()),
                    scaled(x.down(), y.down()))
                .withBias(x.gateBias(), x.upBias(), x.downBias()));
      }
      return new ExpertWeights(changed);
    }

    private static Weight scaled(Weight w, Weight neighbour) {
      if (w.isPlain() || !w.scheme().equals(neighbour.scheme())) {
        return w;
      }
      Parts p = new Parts(w);
      p.scales = neighbour.scales().orElseThrow();
      return p.build();
    }
  }

  /** All experts are taken for quantised as the first one is, and plain ones for zero. */
  static final class PlainProjectionsForgotten extends Altered {
    @Override
    ExpertWeights weights(ExpertWeights weights) {
      return new ExpertWeights(
          weights.experts().stream()
              .map(x ->
                  ExpertWeights.Expert.of(
                      x.gate() == null ? null : zeroIfPlain(x.gate()),
                      zeroIfPlain(x.up()),
                      zeroIfPlain(x.down())))
              .toList());
    }

    private static Weight zeroIfPlain(Weight w) {
      return w.isPlain()
          ? Weight.plain(w.name(), Data.empty(w.plain().dtype(), w.out(), w.in()))
          : w;
    }
  }
}
