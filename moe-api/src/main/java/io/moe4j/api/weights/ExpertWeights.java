package io.moe4j.api.weights;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.Objects;
import java.util.function.IntFunction;
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
   * One expert: three linear maps, each stored in its own way, and their biases (F32, BF16 or F16
   * of any stride; null counts as zeros, also where the config has {@code expertBias}). Immutable.
   * Values, not identity: two experts over the same tensors are equal.
   *
   * @since 0.1.0
   */
  public static final class Expert {
    private final @Nullable Weight gate;
    private final Weight up;
    private final Weight down;
    private final @Nullable Tensor gateBias;
    private final @Nullable Tensor upBias;
    private final @Nullable Tensor downBias;

    private Expert(
        @Nullable Weight gate,
        Weight up,
        Weight down,
        @Nullable Tensor gateBias,
        @Nullable Tensor upBias,
        @Nullable Tensor downBias) {
      this.gate = gate;
      this.up = Objects.requireNonNull(up, "up");
      this.down = Objects.requireNonNull(down, "down");
      this.gateBias = gateBias;
      this.upBias = upBias;
      this.downBias = downBias;
      require("gate", gate, up.out(), up.in());
      require("down", down, up.in(), up.out());
      require("gateBias", gateBias, up.out());
      require("upBias", upBias, up.out());
      require("downBias", downBias, up.in());
      if (gate == null && gateBias != null) {
        throw new IllegalArgumentException("gateBias is " + gateBias + " without a gate");
      }
    }

    /**
     * An expert without biases.
     *
     * @param gate {@code [I, H]}; null where the activation is not gated
     * @param up {@code [I, H]}
     * @param down {@code [H, I]}
     * @return the expert
     */
    public static Expert of(@Nullable Weight gate, Weight up, Weight down) {
      return new Expert(gate, up, down, null, null, null);
    }

    /**
     * An expert of plain weights, without biases.
     *
     * @param gate {@code [I, H]}; null where the activation is not gated
     * @param up {@code [I, H]}
     * @param down {@code [H, I]}
     * @return the expert
     */
    public static Expert plain(@Nullable Tensor gate, Tensor up, Tensor down) {
      return of(
          gate == null ? null : Weight.plain("gate", gate),
          Weight.plain("up", up),
          Weight.plain("down", down));
    }

    /**
     * The same weights with these biases in place of those it had.
     *
     * @param gateBias {@code [I]} or null
     * @param upBias {@code [I]} or null
     * @param downBias {@code [H]} or null
     * @return a new expert
     */
    public Expert withBias(
        @Nullable Tensor gateBias, @Nullable Tensor upBias, @Nullable Tensor downBias) {
      return new Expert(gate, up, down, gateBias, upBias, downBias);
    }

    /** {@return the gate projection {@code [I, H]}; null where the activation is not gated} */
    public @Nullable Weight gate() {
      return gate;
    }

    /** {@return the up projection, {@code [I, H]}} */
    public Weight up() {
      return up;
    }

    /** {@return the down projection, {@code [H, I]}} */
    public Weight down() {
      return down;
    }

    /** {@return the bias of the gate projection, {@code [I]}, or null} */
    public @Nullable Tensor gateBias() {
      return gateBias;
    }

    /** {@return the bias of the up projection, {@code [I]}, or null} */
    public @Nullable Tensor upBias() {
      return upBias;
    }

    /** {@return the bias of the down projection, {@code [H]}, or null} */
    public @Nullable Tensor downBias() {
      return downBias;
    }

    /** {@return the projections that are there: gate, up, down} */
    public List<Weight> projections() {
      return gate == null ? List.of(up, down) : List.of(gate, up, down);
    }

    private static void require(String name, @Nullable Weight w, long out, long in) {
      if (w != null && (w.out() != out || w.in() != in)) {
        throw new IllegalArgumentException(
            name + " is " + w + ", must be [" + out + ", " + in + "] to fit up");
      }
    }

    private static void require(String name, @Nullable Tensor t, long size) {
      if (t != null && (t.dims() != 1 || t.size(0) != size)) {
        throw new IllegalArgumentException(
            name + " is " + t + ", must have shape [" + size + "] to fit up");
      }
    }
  }

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
      if (first.up().out() != other.up().out()
          || first.up().in() != other.up().in()
          || (first.gate() == null) != (other.gate() == null)) {
        throw new IllegalArgumentException(
            "expert "
                + e
                + " has up "
                + other.up()
                + (other.gate() == null ? " without gate" : "")
                + " and expert 0 "
                + first.up()
                + (first.gate() == null ? " without gate" : "")
                + "; all experts of a layer have one shape");
      }
    }
  }

  /**
   * Views of stacked tensors that are not quantised.
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
    return stacked(
        w13,
        w2,
        b13,
        b2,
        gated,
        layout,
        rows -> Weight.plain(rows.of(w13)),
        e -> Weight.plain("down", w2.select(0, e)));
  }

  /**
   * Views of stacked MXFP4 tensors.
   *
   * @param w13 F4 {@code [E, 2I, H]}, gate and up rows as {@code layout} says; {@code [E, I, H]}
   *     when not {@code gated}
   * @param s13 F8_E8M0 {@code [E, 2I, H / 32]}, rows in the same layout
   * @param w2 F4 {@code [E, H, I]}
   * @param s2 F8_E8M0 {@code [E, H, I / 32]}
   * @param b13 {@code [E, 2I]} in the same layout, or null
   * @param b2 {@code [E, H]} or null
   * @param gated whether {@code w13} holds gate rows
   * @param layout how gate and up rows alternate
   * @return one entry per expert
   */
  public static ExpertWeights ofStackedMxfp4(
      Tensor w13,
      Tensor s13,
      Tensor w2,
      Tensor s2,
      @Nullable Tensor b13,
      @Nullable Tensor b2,
      boolean gated,
      GateUpLayout layout) {
    requireStacked("s13", s13, w13);
    requireStacked("s2", s2, w2);
    return stacked(
        w13,
        w2,
        b13,
        b2,
        gated,
        layout,
        rows -> Weight.mxfp4(rows.of(w13), rows.of(s13)),
        e -> Weight.mxfp4(w2.select(0, e), s2.select(0, e)));
  }

  private static void requireStacked(String name, Tensor scales, Tensor codes) {
    if (scales.dims() != 3
        || codes.dims() != 3
        || scales.size(0) != codes.size(0)
        || scales.size(1) != codes.size(1)) {
      throw new IllegalArgumentException(
          name + " is " + scales + " for codes " + codes + "; need [E, rows, groups]");
    }
  }

  /** The rows of gate or up of one expert, in whatever is stacked like w13. */
  private interface RowsOf {
    Tensor of(Tensor stacked);
  }

  private interface GateOrUp {
    Weight of(RowsOf rows);
  }

  private static ExpertWeights stacked(
      Tensor w13,
      Tensor w2,
      @Nullable Tensor b13,
      @Nullable Tensor b2,
      boolean gated,
      GateUpLayout layout,
      GateOrUp gateOrUp,
      IntFunction<Weight> down) {
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
    return new ExpertWeights(
        IntStream.range(0, Math.toIntExact(w13.size(0)))
            .mapToObj(e -> {
              RowsOf gateRows = t -> part(t.select(0, e), false, layout);
              RowsOf upRows = gated ? t -> part(t.select(0, e), true, layout) : t -> t.select(0, e);
              return Expert.of(
                      gated ? gateOrUp.of(gateRows) : null, gateOrUp.of(upRows), down.apply(e))
                  .withBias(
                      b13 == null || !gated ? null : gateRows.of(b13),
                      b13 == null ? null : upRows.of(b13),
                      b2 == null ? null : b2.select(0, e));
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
