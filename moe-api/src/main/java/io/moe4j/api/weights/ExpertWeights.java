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
   */
  public record Expert(
      @Nullable Tensor gate,
      Tensor up,
      Tensor down,
      @Nullable Tensor gateBias,
      @Nullable Tensor upBias,
      @Nullable Tensor downBias) {

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
   * @param experts not empty, all of one shape
   */
  public ExpertWeights {
    experts = List.copyOf(experts);
    for (int e = 1; e < experts.size(); e++) {
      Expert first = experts.getFirst();
      Expert other = experts.get(e);
      if (!java.util.Arrays.equals(first.up().shape(), other.up().shape())
          || (first.gate() == null) != (other.gate() == null)
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
