package io.moe4j.checkpoint;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.AdapterPolicy.FusedOrder;
import io.moe4j.checkpoint.AdapterPolicy.FusedSide;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;

/**
 * PEFT's adapters on fused experts: which parameter a pair belongs to, and which side its A covers.
 * PEFT wraps the experts' module once per targeted parameter, in the order of declaration, so that
 * the last one declared is outermost; the parameter's name is not in the key. First every pair is
 * {@link #add added}, because the pairs of an adapter explain each other; then each is resolved.
 */
final class WrapperResolver {
  private final AdapterConfig config;
  private final Set<String> targets = new HashSet<>();
  private final AdapterTargetModel model;
  private final AdapterPolicy policy;
  private final AdapterScales scales;
  private final Set<String> notes;

  /** Experts' module to depths of its wrappers. */
  private final Map<String, TreeSet<Integer>> depths = new HashMap<>();

  private final List<FactorPair> pairs = new ArrayList<>();
  private final Set<FusedSide> evidence = EnumSet.noneOf(FusedSide.class);

  WrapperResolver(
      AdapterConfig config,
      AdapterTargetModel model,
      AdapterPolicy policy,
      AdapterScales scales,
      Set<String> notes) {
    this.config = config;
    config.targetParameters().forEach(t -> targets.add(WrapperSegments.strip(t)));
    this.model = model;
    this.policy = policy;
    this.scales = scales;
    this.notes = notes;
  }

  void add(ModulePlace.Wrapper wrapper, FactorPair pair) {
    depths.computeIfAbsent(wrapper.experts(), e -> new TreeSet<>()).add(wrapper.depth());
    pairs.add(pair);
  }

  /** Learns from the parameters that are not square which side A covers in this file. */
  void settle() {
    for (FactorPair pair : pairs) {
      if (pair.place instanceof ModulePlace.Wrapper w) {
        try {
          FusedParameter parameter = parameter(w, pair);
          Set<FusedSide> sides =
              fused(pair, w.layer(), parameter, w.experts() + "." + parameter.name())
                  .sides(parameter, model.layer(w.layer()));
          if (sides.size() == 1) {
            evidence.addAll(sides);
          }
        } catch (AdapterProblem p) {
          // No evidence; reported when the pair itself is resolved.
        }
      }
    }
  }

  List<Contribution> resolve(FactorPair pair) throws AdapterProblem {
    if (!(pair.place instanceof ModulePlace.Wrapper w)) {
      throw new IllegalArgumentException(pair.source() + " is no wrapper");
    }
    FusedParameter parameter = parameter(w, pair);
    return resolve(pair, w.layer(), parameter, w.experts() + "." + parameter.name());
  }

  /** A module that holds one fused parameter: its name says which. */
  List<Contribution> resolve(FactorPair pair, ModulePlace.Named named) throws AdapterProblem {
    FusedParameter parameter = named.parameter();
    return resolve(pair, named.layer(), parameter, pair.module + "." + parameter.name());
  }

  private List<Contribution> resolve(
      FactorPair pair, int layer, FusedParameter parameter, String name) throws AdapterProblem {
    if (parameter.kind() == Kind.BIAS) {
      throw AdapterProblem.unappliable("the experts' bias " + parameter.name());
    }
    MoeConfig layerConfig = model.layer(layer);
    if (isStacked(pair)) {
      return StackedFactors.wrapped(pair, layer, parameter.kind(), name, model, scales);
    }
    FusedPair fused = fused(pair, layer, parameter, name);
    FusedSide side = side(fused, parameter, layerConfig, layer);
    int counted = counted(layerConfig, parameter, fused.a(), scales.configRank(name));
    FusedLayout.Orders orders = config.fused().orders(parameter.name(), counted);
    FusedPair.Views views =
        fused.views(
            parameter,
            side,
            counted,
            orders.a().orElse(FusedOrder.GROUPED_BY_EXPERT),
            orders.b().isPresent() ? orders.b().get() : unstatedOrder(fused, parameter, counted));
    requireGateUpOrder(parameter, orders);
    return contributions(
        layer,
        parameter.kind(),
        AdapterAssembler.ALL,
        ofExperts(views.a(), layerConfig),
        ofExperts(views.b(), layerConfig),
        model.gateUp(),
        scales.scale(name, fused.rank()),
        pair.source());
  }

  /** The order of B's columns where the file does not say it. */
  private FusedOrder unstatedOrder(FusedPair fused, FusedParameter parameter, int experts)
      throws AdapterProblem {
    if (policy.loraBOrder().isPresent()) {
      return policy.loraBOrder().get();
    }
    if (!fused.dependsOnOrder(experts)) {
      return FusedOrder.RANK_MAJOR;
    }
    return switch (config.fused().writer()) {
      case PEFT -> FusedOrder.RANK_MAJOR;
      case UNSLOTH ->
          throw AdapterProblem.damage(
              "Unsloth wrote the file and did not mark the order in which lora_B of "
                  + parameter.name()
                  + " folds its experts, which it changed in September 2026; the values do not"
                  + " tell. AdapterPolicy.withLoraBOrder(order) decides: GROUPED_BY_EXPERT for files"
                  + " trained before, RANK_MAJOR after");
      case UNKNOWN ->
          throw AdapterProblem.damage(
              "adapter_config.json has no peft_version and nothing else that only PEFT writes, and"
                  + " writers differ in the order in which lora_B of fused parameters folds the"
                  + " experts; the values do not tell. AdapterPolicy.withLoraBOrder(order) decides:"
                  + " GROUPED_BY_EXPERT for files of Megatron-Bridge, RANK_MAJOR for those of PEFT"
                  + " and NeMo Automodel");
    };
  }

  /**
   * Megatron-Bridge, which alone folds by expert and leaves no mark, also writes gate and up one
   * after the other where the model has them interleaved. That matters also for factors of one
   * rank, whose columns have one order only.
   */
  private void requireGateUpOrder(FusedParameter parameter, FusedLayout.Orders orders)
      throws AdapterProblem {
    if (config.fused().writer() != FusedLayout.Writer.UNKNOWN
        || orders.b().isPresent()
        || policy.loraBOrder().equals(Optional.of(FusedOrder.RANK_MAJOR))
        || parameter.kind() != Kind.GATE_UP
        || model.gateUp() != GateUpLayout.INTERLEAVED) {
      return;
    }
    throw AdapterProblem.damage(
        "Megatron-Bridge writes gate and up of "
            + parameter.name()
            + " one after the other, where "
            + model.layout().modelType()
            + " has them interleaved, so its file means another change than was trained: export"
            + " the merged checkpoint instead"
            + (policy.loraBOrder().isPresent()
                ? ""
                : ". AdapterPolicy.withLoraBOrder(RANK_MAJOR) says that PEFT or NeMo Automodel wrote"
                    + " it"));
  }

  /** PEFT folds experts into two dimensions; other writers keep three under its names. */
  private static boolean isStacked(FactorPair pair) throws AdapterProblem {
    return pair.a().dims() == 3 || pair.b().dims() == 3;
  }

  /** Splits a fused pair into the maps it changes; gate and up share A. */
  static List<Contribution> contributions(
      int layer,
      Kind kind,
      int expert,
      Tensor a,
      Tensor b,
      GateUpLayout layout,
      double scale,
      String source) {
    if (kind != Kind.GATE_UP) {
      LoraTarget target = kind == Kind.UP ? LoraTarget.UP : LoraTarget.DOWN;
      return List.of(new Contribution(layer, target, expert, a, b, scale, source));
    }
    long i = b.size(1) / 2;
    boolean halves = layout == GateUpLayout.HALVES;
    Tensor gate = halves ? b.narrow(1, 0, i) : b.sliced(1, 0, i, 2);
    Tensor up = halves ? b.narrow(1, i, i) : b.sliced(1, 1, i, 2);
    return List.of(
        new Contribution(layer, LoraTarget.GATE, expert, a, gate, scale, source),
        new Contribution(layer, LoraTarget.UP, expert, a, up, scale, source));
  }

  private FusedParameter parameter(ModulePlace.Wrapper w, FactorPair pair) throws AdapterProblem {
    List<FusedParameter> targeted =
        model.layout().fusedParameters().stream()
            .filter(p -> isTargeted(w.experts() + "." + p.name()))
            .toList();
    if (!targeted.isEmpty()) {
      int index = targeted.size() - 1 - w.depth();
      if (index < 0) {
        throw AdapterProblem.damage(
            "it is wrapped "
                + (w.depth() + 1)
                + " deep, but target_parameters name only "
                + targeted.stream().map(FusedParameter::name).toList());
      }
      return targeted.get(index);
    }
    return byShape(w, pair);
  }

  /** The weights of a layer's experts that target_parameters name, with the model's own names. */
  Set<FusedParameter> targeted(int layer) {
    Set<FusedParameter> found = new LinkedHashSet<>();
    for (FusedParameter p : model.layout().fusedParameters()) {
      for (BlockPath block : model.layout().blocks()) {
        String name = block.of(layer) + ".experts." + p.name();
        boolean named = isTargeted(name) || targets.stream().anyMatch(t -> t.endsWith("." + name));
        if (named && p.kind() != Kind.BIAS) {
          found.add(p);
        }
      }
    }
    return found;
  }

  /**
   * What PEFT's patterns are matched with: a module's own name, or that of its weight where the
   * config targets that as a parameter (of routers, which are no Linear since transformers 5).
   */
  String trained(String module) {
    String weight = module + ".weight";
    return isTargeted(weight) ? weight : module;
  }

  /** Whether target_parameters name it, or the end of its name. */
  private boolean isTargeted(String parameter) {
    for (int start = 0; start >= 0; ) {
      if (targets.contains(parameter.substring(start))) {
        return true;
      }
      int dot = parameter.indexOf('.', start);
      start = dot < 0 ? -1 : dot + 1;
    }
    return false;
  }

  /**
   * Where target_parameters name none of them: two wrappers are the two weights; a lone one must
   * fit one only.
   */
  private FusedParameter byShape(ModulePlace.Wrapper w, FactorPair pair) throws AdapterProblem {
    List<FusedParameter> weights =
        model.layout().fusedParameters().stream().filter(p -> p.kind() != Kind.BIAS).toList();
    TreeSet<Integer> found = depths.getOrDefault(w.experts(), new TreeSet<>());
    if (weights.size() == 2 && found.equals(new TreeSet<>(List.of(0, 1)))) {
      notes.add(namesNone() + ": the inner wrapper is " + weights.get(0).name());
      return weights.get(1 - w.depth());
    }
    List<FusedParameter> fitting = new ArrayList<>();
    for (FusedParameter p : weights) {
      MoeConfig layerConfig = model.layer(w.layer());
      boolean fits =
          isStacked(pair)
              ? StackedFactors.fits(pair, p.kind(), layerConfig)
              : !fused(pair, w.layer(), p, w.experts() + "." + p.name())
                  .sides(p, layerConfig)
                  .isEmpty();
      if (fits) {
        fitting.add(p);
      }
    }
    if (fitting.size() > 1 && policy.singleTarget().isPresent()) {
      String chosen = policy.singleTarget().get();
      if (fitting.stream().noneMatch(p -> p.name().equals(chosen))) {
        throw AdapterProblem.damage(
            "AdapterPolicy.withSingleTarget(name) is '"
                + StrictJson.shorten(chosen)
                + "', must be one of "
                + fitting.stream().map(FusedParameter::name).toList());
      }
      fitting.removeIf(p -> !p.name().equals(chosen));
    }
    if (fitting.size() != 1) {
      throw AdapterProblem.damage(
          "target_parameters do not say which parameter of the experts it belongs to, and "
              + (fitting.isEmpty() ? "its shape fits none of " : "its shape fits several of ")
              + weights.stream().map(FusedParameter::name).toList()
              + (fitting.isEmpty() ? "" : "; AdapterPolicy.withSingleTarget(name) decides"));
    }
    notes.add(namesNone() + ": by its shape a pair belongs to " + fitting.getFirst().name());
    return fitting.getFirst();
  }

  /** What notes say of target_parameters that do not tell. */
  private String namesNone() {
    return targets.isEmpty()
        ? "target_parameters are not given"
        : "target_parameters name "
            + StrictJson.shorten(targets.toString())
            + ", no weight of these experts";
  }

  private FusedPair fused(FactorPair pair, int layer, FusedParameter parameter, String name)
      throws AdapterProblem {
    Tensor a = pair.a();
    Tensor b = pair.b();
    int configRank = scales.configRank(name);
    int experts = counted(model.layer(layer), parameter, a, configRank);
    return FusedPair.of(a, b, experts, configRank)
        .orElseThrow(() ->
            AdapterProblem.damage(
                "lora_A is %s and lora_B %s; factors of %s for %d experts are [%d*r, in] and [out, r*%d], one of them possibly without the %d"
                    .formatted(a, b, parameter.name(), experts, experts, experts, experts)));
  }

  /**
   * How many experts a parameter's factors count. Modelling code may keep rows for zero experts
   * (longcat_flash does for gate and up, not for down); what is trained there is never used.
   */
  private static int counted(MoeConfig layer, FusedParameter parameter, Tensor a, int configRank) {
    boolean zeros =
        layer.zeroExperts() > 0
            && parameter.kind() == Kind.GATE_UP
            && a.size(0) == (long) layer.numChoices() * configRank;
    return zeros ? layer.numChoices() : layer.numExperts();
  }

  private static Tensor ofExperts(Tensor factors, MoeConfig layer) {
    return factors.size(0) > layer.numExperts()
        ? factors.narrow(0, 0, layer.numExperts())
        : factors;
  }

  private FusedSide side(
      FusedPair fused, FusedParameter parameter, MoeConfig layerConfig, int layer)
      throws AdapterProblem {
    Set<FusedSide> byShape = fused.sides(parameter, layerConfig);
    if (byShape.isEmpty()) {
      long[] dims = ModulePlaces.storedDims(parameter, layerConfig);
      throw AdapterProblem.damage(
          "lora_A is %s and lora_B %s; %s of layer %d has sides %d and %d"
              .formatted(fused.a(), fused.b(), parameter.name(), layer, dims[0], dims[1]));
    }
    Set<FusedSide> byVersion = PeftVersions.sides(config.peftVersion(), parameter.isTransposed());
    if (byShape.size() == 1) {
      FusedSide side = byShape.iterator().next();
      if (!byVersion.contains(side)) {
        notes.add(
            "by its shapes A covers "
                + side
                + " of stored parameters, which peft_version "
                + config.peftVersion().orElse("(none)")
                + " would not have written; the shapes count");
      }
      return side;
    }
    if (evidence.size() == 1) {
      FusedSide side = evidence.iterator().next();
      notes.add(
          parameter.name()
              + " is square; the adapter's other parameters show that A covers "
              + side);
      return side;
    }
    if (byVersion.size() == 1) {
      return byVersion.iterator().next();
    }
    if (policy.side().isPresent()) {
      return policy.side().get();
    }
    throw AdapterProblem.damage(
        parameter.name()
            + " is square, so shapes do not tell which side A covers, and peft_version "
            + config
                .peftVersion()
                .map(v -> "'" + StrictJson.shorten(v) + "'")
                .orElse("is missing and")
            + " does not either; AdapterPolicy.withSide(side) decides");
  }
}
