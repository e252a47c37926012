package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.AdapterPlan.Pair;
import io.moe4j.checkpoint.AdapterPlan.Problem;
import java.util.List;

/**
 * Factors of all experts under the projection's own name ({@code experts.w1}, {@code
 * experts.gate_up_proj}): 3-D, {@code [E, r, in]} and {@code [E, out, r]}, where either may have 1
 * instead of {@code E} (one factor for all experts) or be 2-D (the same). How experts would be
 * folded into a 2-D tensor under such a name is not established, so that is refused.
 */
final class StackedFactors {
  private StackedFactors() {}

  static List<Contribution> stacked(
      Pair pair, ModulePlace.Stacked place, AdapterTargetModel model, AdapterScales scales)
      throws Problem {
    MoeConfig config = AdapterPlan.layerConfig(model, place.layer());
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
      Pair pair, ModulePlace.Named place, AdapterTargetModel model, AdapterScales scales)
      throws Problem {
    MoeConfig config = AdapterPlan.layerConfig(model, place.layer());
    Views v =
        views(
            pair,
            config.numExperts(),
            config.expertHiddenSize(),
            2L * config.intermediateSize(),
            scales.configRank(pair.module));
    double scale = scales.scale(pair.module, v.rank());
    return WrapperResolver.contributions(
        place.layer(), place.parameter().kind(), v.a, v.b, model.gateUp(), scale, pair.source());
  }

  private record Views(Tensor a, Tensor b) {
    int rank() {
      return Math.toIntExact(a.size(1));
    }
  }

  private static Views views(Pair pair, int experts, long in, long out, int configRank)
      throws Problem {
    Tensor a = pair.a();
    Tensor b = pair.b();
    if (a.dims() == 2 && a.size(1) == in) {
      a = a.expand(1);
    }
    if (b.dims() == 2 && b.size(0) == out) {
      b = b.expand(1);
    }
    boolean fits =
        a.dims() == 3
            && b.dims() == 3
            && isExperts(a.size(0), experts)
            && isExperts(b.size(0), experts)
            && a.size(2) == in
            && b.size(1) == out
            && a.size(1) == b.size(2)
            && a.size(1) >= 1;
    // Two 2-D tensors could also be experts folded into the rank, in an order nobody has stated.
    boolean folded =
        pair.a().dims() == 2 && pair.b().dims() == 2 && experts > 1 && a.size(1) != configRank;
    if (!fits || folded) {
      throw Problem.damage(
          "lora_A is %s and lora_B %s; accepted are [%d or 1, r, %d] and [%d or 1, %d, r]"
              .formatted(pair.a(), pair.b(), experts, in, experts, out));
    }
    return new Views(a, b);
  }

  private static boolean isExperts(long size, int experts) {
    return size == experts || size == 1;
  }
}
