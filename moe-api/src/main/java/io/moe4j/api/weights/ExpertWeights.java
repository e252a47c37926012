package io.moe4j.api.weights;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.Objects;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * The routed experts of one layer on this rank, in local order: one entry per expert, so that a
 * checkpoint that keeps every expert in tensors (and files) of its own needs no copy. Immutable;
 * the memory belongs to the caller, who keeps it alive until the {@code Experts} prepared from it
 * are closed.
 *
 * @param experts local expert {@code 0..E_local-1}
 * @since 0.1.0
 */
public record ExpertWeights(List<Expert> experts) {

  /**
   * One expert.
   *
   * @param gate {@code [I, H]}; null where the activation is not gated
   * @param up {@code [I, H]}
   * @param down {@code [H, I]}
   * @param gateBias {@code [I]} or null
   * @param upBias {@code [I]} or null
   * @param downBias {@code [H]} or null
   * @param scales of quantised weights, or null
   */
  public record Expert(
      @Nullable Tensor gate,
      Tensor up,
      Tensor down,
      @Nullable Tensor gateBias,
      @Nullable Tensor upBias,
      @Nullable Tensor downBias,
      @Nullable Scales scales) {

    /**
     * An expert that is not quantised.
     *
     * @param gate {@code [I, H]}; null where the activation is not gated
     * @param up {@code [I, H]}
     * @param down {@code [H, I]}
     * @param gateBias {@code [I]} or null
     * @param upBias {@code [I]} or null
     * @param downBias {@code [H]} or null
     */
    public Expert(
        @Nullable Tensor gate,
        Tensor up,
        Tensor down,
        @Nullable Tensor gateBias,
        @Nullable Tensor upBias,
        @Nullable Tensor downBias) {
      this(gate, up, down, gateBias, upBias, downBias, null);
    }

    /** Checks that the shapes fit each other. */
    public Expert {
      Objects.requireNonNull(up, "up");
      Objects.requireNonNull(down, "down");
      if (up.dims() != 2) {
        throw new IllegalArgumentException("up is " + up + ", must be [I, H]");
      }
      long i = up.size(0);
      long h = up.size(1);
      require("gate", gate, i, h);
      require("down", down, h, i);
      require("gateBias", gateBias, i);
      require("upBias", upBias, i);
      require("downBias", downBias, h);
      if (scales != null) {
        if ((gate == null) != (scales.gate() == null)) {
          throw new IllegalArgumentException(
              "scales have gate " + scales.gate() + ", the weights have gate " + gate);
        }
        requireGroups("gate", scales.gate(), i, h);
        requireGroups("up", scales.up(), i, h);
        requireGroups("down", scales.down(), h, i);
      }
    }

    private static void requireGroups(String name, @Nullable Tensor t, long rows, long columns) {
      if (t != null
          && (t.dims() != 2 || t.size(0) != rows || t.size(1) < 1 || columns % t.size(1) != 0)) {
        throw new IllegalArgumentException(
            "scales of "
                + name
                + " are "
                + t
                + ", must be ["
                + rows
                + ", groups] with a number of groups that divides "
                + columns);
      }
    }

    private static void require(String name, @Nullable Tensor t, long... shape) {
      if (t != null && !java.util.Arrays.equals(t.shape(), shape)) {
        throw new IllegalArgumentException(
            name
                + " is "
                + t
                + ", must have shape "
                + java.util.Arrays.toString(shape)
                + " to fit up");
      }
    }
  }

  /**
   * Factors of quantised weights: weight {@code [r, c]} is the stored element times {@code scale[r,
   * c / groupSize]}, where {@code groupSize} is columns by groups. For MXFP4 the elements are
   * {@link io.moe4j.api.tensor.DType#F4}, the scales {@link io.moe4j.api.tensor.DType#F8_E8M0}, and
   * a group has 32 (OCP Microscaling Formats v1.0).
   *
   * @param gate {@code [I, groups]}; null where the activation is not gated
   * @param up {@code [I, groups]}
   * @param down {@code [H, groups]}
   */
  public record Scales(@Nullable Tensor gate, Tensor up, Tensor down) {}

  /**
   * Checks the components.
   *
   * @param experts not empty, all of one shape
   */
  public ExpertWeights {
    experts = List.copyOf(experts);
    for (int e = 1; e < experts.size(); e++) {
      Expert first = experts.getFirst();
      Expert other = experts.get(e);
      if (!java.util.Arrays.equals(first.up().shape(), other.up().shape())
          || (first.gate() == null) != (other.gate() == null)
          || (first.scales() == null) != (other.scales() == null)
          || first.up().dtype() != other.up().dtype()) {
        throw new IllegalArgumentException(
            "expert "
                + e
                + " has up "
                + other.up()
                + " and expert 0 "
                + first.up()
                + "; all experts must be alike");
      }
    }
  }

  /**
   * Views of stacked tensors.
   *
   * @param w13 {@code [E, 2I, H]}, gate and up rows as {@code layout} says; {@code [E, I, H]} when
   *     not {@code gated}
   * @param w2 {@code [E, H, I]}
   * @param b13 {@code [E, 2I]} in the same layout, or null
   * @param b2 {@code [E, H]} or null
   * @param gated whether {@code w13} holds gate rows
   * @param layout how gate and up rows alternate
   * @return one entry per expert
   */
  public static ExpertWeights ofStacked(
      Tensor w13,
      Tensor w2,
      @Nullable Tensor b13,
      @Nullable Tensor b2,
      boolean gated,
      GateUpLayout layout) {
    if (w13.dims() != 3 || w2.dims() != 3 || w13.size(0) != w2.size(0)) {
      throw new IllegalArgumentException(
          "w13 is "
              + w13
              + " and w2 "
              + w2
              + "; need [E, 2I, H] (or [E, I, H] without gate) and [E, H, I]");
    }
    if (gated && w13.size(1) % 2 != 0) {
      throw new IllegalArgumentException(
          "w13 is " + w13 + "; its second size must be 2I, an even number");
    }
    int experts = Math.toIntExact(w13.size(0));
    return new ExpertWeights(
        IntStream.range(0, experts)
            .mapToObj(e ->
                new Expert(
                    gated ? part(w13.select(0, e), false, layout) : null,
                    gated ? part(w13.select(0, e), true, layout) : w13.select(0, e),
                    w2.select(0, e),
                    b13 == null || !gated ? null : part(b13.select(0, e), false, layout),
                    b13 == null
                        ? null
                        : gated ? part(b13.select(0, e), true, layout) : b13.select(0, e),
                    b2 == null ? null : b2.select(0, e)))
            .toList());
  }

  /**
   * These weights with scales that are stacked like them.
   *
   * @param s13 {@code [E, 2I, groups]}, rows as {@code layout} says; {@code [E, I, groups]} when
   *     the experts have no gate
   * @param s2 {@code [E, H, groups]}
   * @param layout how gate and up rows alternate in {@code s13}
   * @return new weights over the same memory
   */
  public ExpertWeights withStackedScales(Tensor s13, Tensor s2, GateUpLayout layout) {
    long rows = experts.getFirst().up().size(0) * (experts.getFirst().gate() == null ? 1 : 2);
    if (s13.dims() != 3
        || s2.dims() != 3
        || s13.size(0) != experts.size()
        || s2.size(0) != experts.size()
        || s13.size(1) != rows) {
      throw new IllegalArgumentException(
          "s13 is "
              + s13
              + " and s2 "
              + s2
              + "; need ["
              + experts.size()
              + ", "
              + rows
              + ", groups] and ["
              + experts.size()
              + ", H, groups]");
    }
    return new ExpertWeights(
        IntStream.range(0, experts.size())
            .mapToObj(e -> {
              Expert x = experts.get(e);
              Tensor both = s13.select(0, e);
              boolean gated = x.gate() != null;
              Scales scales =
                  new Scales(
                      gated ? part(both, false, layout) : null,
                      gated ? part(both, true, layout) : both,
                      s2.select(0, e));
              return new Expert(
                  x.gate(), x.up(), x.down(), x.gateBias(), x.upBias(), x.downBias(), scales);
            })
            .toList());
  }

  private static Tensor part(Tensor stacked, boolean up, GateUpLayout layout) {
    long i = stacked.size(0) / 2;
    return switch (layout) {
      case HALVES -> stacked.narrow(0, up ? i : 0, i);
      case INTERLEAVED -> stacked.sliced(0, up ? 1 : 0, i, 2);
    };
  }

  /** {@return the number of local experts} */
  public int numExperts() {
    return experts.size();
  }

  /**
   * {@return one expert}
   *
   * @param local {@code 0..numExperts-1}
   */
  public Expert expert(int local) {
    return experts.get(local);
  }
}
