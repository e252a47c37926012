package io.moe4j.tck;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** The ways in which checkpoints keep the weights of experts; all of them reach {@code prepare}. */
enum Layout {
  /** {@code [E, 2I, H]} and {@code [E, H, I]}, gate rows first. */
  STACKED,
  /** The same with gate and up rows in turn. */
  INTERLEAVED,
  /** {@code [E, H, 2I]} interleaved and {@code [E, I, H]}: every matrix is a transposed view. */
  TRANSPOSED,
  /** A tensor for each matrix of each expert, at odd byte offsets, as files have them. */
  SEPARATE_UNALIGNED;

  /** {@return random experts, about as large as keeps activations near one} */
  ExpertWeights random(MoeConfig config, Data data) {
    int experts = config.numLocalExperts();
    int h = config.expertHiddenSize();
    int i = config.intermediateSize();
    boolean gated = config.activation().isGated();
    int rows = gated ? 2 * i : i;
    DType dtype = config.weightDtype();
    Tensor b13 = config.expertBias() ? data.normal(dtype, 0.7, experts, rows) : null;
    Tensor b2 = config.expertBias() ? data.normal(dtype, 0.7, experts, h) : null;
    double d13 = 1 / Math.sqrt(h);
    double d2 = 1 / Math.sqrt(i);
    if (config.uniformScheme().equals(Optional.of(QuantScheme.MXFP4))) {
      return ExpertWeights.ofStackedMxfp4(
          data.bytes(DType.F4, 0, 255, experts, rows, h),
          scales(data, d13, experts, rows, h),
          data.bytes(DType.F4, 0, 255, experts, h, i),
          scales(data, d2, experts, h, i),
          b13,
          b2,
          gated,
          this == STACKED ? GateUpLayout.HALVES : GateUpLayout.INTERLEAVED);
    }
    return switch (this) {
      case STACKED ->
          ExpertWeights.ofStacked(
              data.normal(dtype, d13, experts, rows, h),
              data.normal(dtype, d2, experts, h, i),
              b13,
              b2,
              gated,
              GateUpLayout.HALVES);
      case INTERLEAVED ->
          ExpertWeights.ofStacked(
              data.normal(dtype, d13, experts, rows, h),
              data.normal(dtype, d2, experts, h, i),
              b13,
              b2,
              gated,
              GateUpLayout.INTERLEAVED);
      case TRANSPOSED ->
          ExpertWeights.ofStacked(
              data.normal(dtype, d13, experts, h, rows).transpose(1, 2),
              data.normal(dtype, d2, experts, i, h).transpose(1, 2),
              b13,
              b2,
              gated,
              GateUpLayout.INTERLEAVED);
      case SEPARATE_UNALIGNED -> {
        List<ExpertWeights.Expert> list = new ArrayList<>();
        for (int e = 0; e < experts; e++) {
          Tensor bias13 = b13 == null ? null : b13.select(0, e);
          list.add(
              ExpertWeights.Expert.plain(
                      gated ? unaligned(data.normal(dtype, d13, i, h)) : null,
                      unaligned(data.normal(dtype, d13, i, h)),
                      unaligned(data.normal(dtype, d2, h, i)))
                  .withBias(
                      gated && bias13 != null ? bias13.narrow(0, 0, i) : null,
                      bias13 == null ? null : bias13.narrow(0, rows - i, i),
                      b2 == null ? null : b2.select(0, e)));
        }
        yield new ExpertWeights(list);
      }
    };
  }

  /** Elements have a standard deviation of 3; scales go up and down by a factor of 4 around it. */
  private static Tensor scales(Data data, double deviation, int experts, int rows, int columns) {
    int middle = 127 + Math.getExponent(deviation / 3);
    int groups = columns / QuantScheme.MXFP4.scaleColumns();
    return data.bytes(DType.F8_E8M0, middle - 2, middle + 1, experts, rows, groups);
  }

  /** A copy in native memory, one byte off. */
  private static Tensor unaligned(Tensor t) {
    MemorySegment from = t.segment();
    MemorySegment to =
        Arena.ofAuto().allocate(from.byteSize() + 64, 64).asSlice(1, from.byteSize());
    to.copyFrom(from);
    return Tensor.of(t.dtype(), to, t.shape());
  }

  /** {@return everything that an author of a backend must not write} */
  static List<@Nullable Tensor> tensors(ExpertWeights weights) {
    List<@Nullable Tensor> all = new ArrayList<>();
    for (ExpertWeights.Expert x : weights.experts()) {
      for (Weight w : x.projections()) {
        all.add(w.values());
        all.add(w.scales().orElse(null));
        all.add(w.globalScale().orElse(null));
        all.add(w.zeroPoints().orElse(null));
        all.add(w.groupIndex().orElse(null));
      }
      all.add(x.gateBias());
      all.add(x.upBias());
      all.add(x.downBias());
    }
    return all;
  }
}
