package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.List;
import java.util.Optional;

/**
 * Factors of all experts in three dimensions: {@code [E, r, in]} and {@code [E, out, r]}, where
 * either may have 1 instead of {@code E} (one factor for all experts) or be 2-D (the same). They
 * stand under the projection's own name ({@code experts.w1}, {@code experts.gate_up_proj}), or
 * under the names of PEFT's wrappers, where B may also be {@code [out, r, E]}, the order in which
 * PEFT folds its columns. How experts would be folded into a 2-D tensor under a projection's name
 * is not established, so that is refused.
 */
final class StackedFactors {
  private StackedFactors() {}

  static List<Contribution> stacked(
      FactorPair pair, ModulePlace.Stacked place, AdapterTargetModel model, AdapterScales scales)
      throws AdapterProblem {
    MoeConfig config = model.layer(place.layer());
    LoraTarget target = place.target();
    Views v =
        views(
            pair,
            config.numExperts(),
            TargetSizes.in(target, config),
            TargetSizes.out(target, config),
            scales.configRank(pair.module));
    double scale = scales.scale(pair.module, v.rank());
    return List.of(
        new Contribution(
            place.layer(), target, AdapterAssembler.ALL, v.a, v.b, scale, pair.source()));
  }

  static List<Contribution> named(
      FactorPair pair, ModulePlace.Named place, AdapterTargetModel model, AdapterScales scales)
      throws AdapterProblem {
    MoeConfig config = model.layer(place.layer());
    Kind kind = place.parameter().kind();
    Views v =
        views(
            pair,
            config.numExperts(),
            in(kind, config),
            out(kind, config),
            scales.configRank(pair.module));
    return split(place.layer(), kind, v, model, scales.scale(pair.module, v.rank()), pair);
  }

  /**
   * Under the name of a wrapper of PEFT's.
   *
   * @param name the parameter's full name, as patterns see it
   */
  static List<Contribution> wrapped(
      FactorPair pair,
      int layer,
      Kind kind,
      String name,
      AdapterTargetModel model,
      AdapterScales scales)
      throws AdapterProblem {
    MoeConfig config = model.layer(layer);
    long in = in(kind, config);
    long out = out(kind, config);
    Views v =
        wrappedViews(pair, config.numExperts(), in, out)
            .orElseThrow(
                () -> refusal(pair, config.numExperts(), in, out, " or [%2$d, r, %1$d or 1]"));
    return split(layer, kind, v, model, scales.scale(name, v.rank()), pair);
  }

  /** Whether the shapes under a wrapper's name are those of a parameter. */
  static boolean fits(FactorPair pair, Kind kind, MoeConfig config) throws AdapterProblem {
    return wrappedViews(pair, config.numExperts(), in(kind, config), out(kind, config)).isPresent();
  }

  private static long in(Kind kind, MoeConfig config) {
    return kind == Kind.DOWN ? config.intermediateSize() : config.expertHiddenSize();
  }

  private static long out(Kind kind, MoeConfig config) {
    return switch (kind) {
      case GATE_UP -> 2L * config.intermediateSize();
      case UP -> config.intermediateSize();
      case DOWN, BIAS -> config.expertHiddenSize();
    };
  }

  private static List<Contribution> split(
      int layer, Kind kind, Views v, AdapterTargetModel model, double scale, FactorPair pair) {
    return WrapperResolver.contributions(
        layer, kind, AdapterAssembler.ALL, v.a, v.b, model.gateUp(), scale, pair.source());
  }

  private record Views(Tensor a, Tensor b) {
    int rank() {
      return Math.toIntExact(a.size(1));
    }

    boolean fits(int experts, long in, long out) {
      return a.dims() == 3
          && b.dims() == 3
          && isExperts(a.size(0), experts)
          && isExperts(b.size(0), experts)
          && a.size(2) == in
          && b.size(1) == out
          && a.size(1) == b.size(2)
          && a.size(1) >= 1;
    }
  }

  private static Views views(FactorPair pair, int experts, long in, long out, int configRank)
      throws AdapterProblem {
    Views v = new Views(threeDims(pair.a(), 1, in), threeDims(pair.b(), 0, out));
    // Two 2-D tensors could also be experts folded into the rank, in an order nobody has stated.
    boolean folded =
        pair.a().dims() == 2 && pair.b().dims() == 2 && experts > 1 && v.a.size(1) != configRank;
    if (!v.fits(experts, in, out) || folded) {
      throw refusal(pair, experts, in, out, "");
    }
    return v;
  }

  /** Empty if the shapes fit no reading of B, or both. */
  private static Optional<Views> wrappedViews(FactorPair pair, int experts, long in, long out)
      throws AdapterProblem {
    Tensor a = threeDims(pair.a(), 1, in);
    Tensor b = threeDims(pair.b(), 0, out);
    Views expertsFirst = new Views(a, b);
    if (b.dims() != 3 || pair.b().dims() == 2) {
      return Optional.of(expertsFirst).filter(v -> v.fits(experts, in, out));
    }
    Views expertsLast = new Views(a, b.transpose(1, 2).transpose(0, 1));
    boolean first = expertsFirst.fits(experts, in, out);
    boolean last = expertsLast.fits(experts, in, out);
    return first == last ? Optional.empty() : Optional.of(first ? expertsFirst : expertsLast);
  }

  /** A 2-D factor is one for all experts, if its side has the right width. */
  private static Tensor threeDims(Tensor t, int side, long width) {
    return t.dims() == 2 && t.size(side) == width ? t.expand(1) : t;
  }

  private static AdapterProblem refusal(
      FactorPair pair, int experts, long in, long out, String more) {
    return AdapterProblem.damage(
        "lora_A is %s and lora_B %s; accepted are [%d or 1, r, %d] and [%d or 1, %d, r]"
                .formatted(pair.a, pair.b, experts, in, experts, out)
            + more.formatted(experts, out));
  }

  private static boolean isExperts(long size, int experts) {
    return size == experts || size == 1;
  }
}
