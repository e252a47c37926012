package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** From a pair of factors and its place to the linear maps that it changes. */
final class PairResolver {
  private final AdapterTargetModel model;
  private final AdapterPolicy policy;
  private final AdapterScales scales;
  private final WrapperResolver wrappers;
  private final Map<String, FactorPair> owners = new HashMap<>();

  PairResolver(
      AdapterTargetModel model,
      AdapterPolicy policy,
      AdapterScales scales,
      WrapperResolver wrappers) {
    this.model = model;
    this.policy = policy;
    this.scales = scales;
    this.wrappers = wrappers;
  }

  /** What a pair that can be applied contributes; nobody else may contribute to the same map. */
  List<Contribution> resolve(FactorPair pair) throws AdapterProblem {
    List<Contribution> found =
        switch (pair.place) {
          case ModulePlace.Expert e -> single(pair, e.layer(), e.target(), e.expert());
          case ModulePlace.ExpertGateUp e -> gateUp(pair, e);
          case ModulePlace.Router r ->
              single(pair, r.layer(), LoraTarget.ROUTER, AdapterAssembler.ALL);
          case ModulePlace.Dense d -> single(pair, d.layer(), d.target(), AdapterAssembler.ALL);
          case ModulePlace.DenseGateUp d -> sharedGateUp(pair, d);
          case ModulePlace.Wrapper w -> wrappers.resolve(pair);
          case ModulePlace.Named n ->
              n.ofModule()
                  ? wrappers.resolve(pair, n)
                  : StackedFactors.named(pair, n, model, scales);
          case ModulePlace.Stacked s -> StackedFactors.stacked(pair, s, model, scales);
          case ModulePlace.Outside o -> throw AdapterProblem.unappliable(o.reason());
          case ModulePlace.Unappliable u -> throw AdapterProblem.unappliable(u.reason());
        };
    for (Contribution c : found) {
      if (c.rank() > policy.maxRank()) {
        throw AdapterProblem.damage(
            "rank " + c.rank() + " is over the maximum " + policy.maxRank());
      }
    }
    requireUnclaimed(pair, found);
    return found;
  }

  /** Two pairs for one linear map would have to be added up; no writer means that. */
  private void requireUnclaimed(FactorPair pair, List<Contribution> found) throws AdapterProblem {
    Set<String> claims = new HashSet<>();
    for (Contribution c : found) {
      String map = c.layer() + " " + c.target();
      claims.add(map + " " + c.expert());
      FactorPair whole = owners.get(map + " " + AdapterAssembler.ALL);
      FactorPair any = owners.get(map);
      FactorPair same = owners.get(map + " " + c.expert());
      FactorPair other = same != null ? same : c.expert() == AdapterAssembler.ALL ? any : whole;
      if (other != null) {
        throw AdapterProblem.damage(
            "layer "
                + c.layer()
                + " "
                + c.target()
                + (c.expert() == AdapterAssembler.ALL ? "" : " of expert " + c.expert())
                + " already has factors from "
                + other.source());
      }
      claims.add(map);
    }
    claims.forEach(claim -> owners.put(claim, pair));
  }

  private List<Contribution> single(FactorPair pair, int layer, LoraTarget target, int expert)
      throws AdapterProblem {
    MoeConfig config = model.layer(layer);
    long in = TargetSizes.in(target, config);
    long out = TargetSizes.out(target, config);
    SharedFactors.One one = SharedFactors.ofOne(pair, in, out, target + " of layer " + layer);
    double scale = scales.scale(wrappers.trained(pair.module), one.rank());
    return List.of(new Contribution(layer, target, expert, one.a(), one.b(), scale, pair.source()));
  }

  private List<Contribution> gateUp(FactorPair pair, ModulePlace.ExpertGateUp place)
      throws AdapterProblem {
    MoeConfig config = model.layer(place.layer());
    SharedFactors.One one =
        SharedFactors.ofOne(
            pair,
            config.expertHiddenSize(),
            2L * config.intermediateSize(),
            "gate and up of an expert of layer " + place.layer());
    return WrapperResolver.contributions(
        place.layer(),
        Kind.GATE_UP,
        place.expert(),
        one.a(),
        one.b(),
        model.gateUp(),
        scales.scale(wrappers.trained(pair.module), one.rank()),
        pair.source());
  }

  /** Gate rows come first, whatever the order in the routed experts is. */
  private List<Contribution> sharedGateUp(FactorPair pair, ModulePlace.DenseGateUp place)
      throws AdapterProblem {
    int layer = place.layer();
    MoeConfig config = model.layer(layer);
    long in = TargetSizes.in(LoraTarget.SHARED_UP, config);
    long half = TargetSizes.out(LoraTarget.SHARED_UP, config);
    SharedFactors.One one =
        SharedFactors.ofOne(
            pair, in, 2 * half, "gate and up of the shared expert of layer " + layer);
    double scale = scales.scale(wrappers.trained(pair.module), one.rank());
    int all = AdapterAssembler.ALL;
    Tensor gate = one.b().narrow(1, 0, half);
    Tensor up = one.b().narrow(1, half, half);
    String source = pair.source();
    return List.of(
        new Contribution(layer, LoraTarget.SHARED_GATE, all, one.a(), gate, scale, source),
        new Contribution(layer, LoraTarget.SHARED_UP, all, one.a(), up, scale, source));
  }
}
