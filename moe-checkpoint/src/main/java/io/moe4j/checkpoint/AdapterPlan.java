package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.AdapterPolicy.Action;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * Decides about every tensor of an adapter file: which pairs become {@link Contribution}s, what is
 * skipped or refused and why.
 */
final class AdapterPlan {
  /** Why a pair cannot be applied. */
  static final class Problem extends Exception {
    private static final long serialVersionUID = 1L;
    private final String reason;
    private final boolean damage;

    private Problem(String reason, boolean damage) {
      super(reason, null, false, false);
      this.reason = reason;
      this.damage = damage;
    }

    /** Wrong whatever the policy. */
    static Problem damage(String reason) {
      return new Problem(reason, true);
    }

    /** Right but not to be applied: the policy decides. */
    static Problem unappliable(String reason) {
      return new Problem(reason, false);
    }
  }

  /** The factors of one module. */
  static final class Pair {
    final String module;
    final ModulePlace place;
    @Nullable String aName;
    @Nullable String bName;
    @Nullable Tensor a;
    @Nullable Tensor b;

    /** Whose one factor stands in for the one that is missing here. */
    @Nullable Pair lender;

    /** Pairs that its one factor stands in for. */
    final List<Pair> borrowers = new ArrayList<>();

    Pair(String module, ModulePlace place) {
      this.module = module;
      this.place = place;
    }

    String source() {
      return "'" + StrictJson.shorten(module) + "'";
    }

    Tensor a() throws Problem {
      Tensor factor = a != null || lender == null ? a : lender.a;
      if (factor == null) {
        throw Problem.damage("lora_B without its lora_A");
      }
      return factor;
    }

    Tensor b() throws Problem {
      Tensor factor = b != null || lender == null ? b : lender.b;
      if (factor == null) {
        throw Problem.damage("lora_A without its lora_B");
      }
      return factor;
    }

    /** {@code [0]}: nothing but a mark that the module has no such projection. */
    boolean isPlaceholder() {
      return Stream.of(Optional.ofNullable(a), Optional.ofNullable(b))
          .flatMap(Optional::stream)
          .allMatch(t -> t.dims() == 1 && t.size(0) == 0);
    }
  }

  private final AdapterConfig config;
  private final AdapterTargetModel model;
  private final AdapterPolicy policy;
  private final Map<String, Tensor> tensors;
  private final ModulePlaces places;
  private final AdapterScales scales;
  private final Map<String, Pair> pairs = new LinkedHashMap<>();
  private final Map<String, String> spoiled = new HashMap<>();
  private final Map<String, TensorEntry> entries = new LinkedHashMap<>();
  private final List<Contribution> contributions = new ArrayList<>();
  private final Set<String> notes = new LinkedHashSet<>();
  private final Map<String, Pair> owners = new HashMap<>();

  AdapterPlan(
      AdapterConfig config,
      AdapterTargetModel model,
      AdapterPolicy policy,
      Map<String, Tensor> tensors,
      String where) {
    this.config = config;
    this.model = model;
    this.policy = policy;
    this.tensors = tensors;
    this.places = new ModulePlaces(model);
    this.scales = new AdapterScales(config, where, notes);
  }

  /** One entry a tensor, in the order of the file. */
  List<TensorEntry> entries() {
    return tensors.keySet().stream().map(this::entry).toList();
  }

  private TensorEntry entry(String tensor) {
    TensorEntry entry = entries.get(tensor);
    if (entry == null) {
      throw new IllegalStateException("tensor '" + tensor + "' was not accounted for");
    }
    return entry;
  }

  List<Contribution> contributions() {
    return contributions;
  }

  Set<String> notes() {
    return notes;
  }

  void run() {
    collect();
    SharedFactors.lend(pairs.values());
    WrapperResolver wrappers = new WrapperResolver(config, model, policy, scales, notes);
    for (Pair pair : pairs.values()) {
      if (pair.isPlaceholder()) {
        record(pair, Action.SKIP, "an empty placeholder");
      } else if (pair.place instanceof ModulePlace.Wrapper wrapper) {
        attempt(
            pair,
            () -> {
              requireApplicable(pair);
              wrappers.add(wrapper, pair);
            });
      }
    }
    wrappers.settle();
    for (Pair pair : pairs.values()) {
      if (!entries.containsKey(nameOf(pair)) && pair.borrowers.isEmpty()) {
        attempt(pair, () -> resolve(pair, wrappers));
      }
    }
    for (Pair pair : pairs.values()) {
      if (!pair.borrowers.isEmpty()) {
        recordLent(pair);
      }
    }
  }

  /** A factor that was lent fares as the pairs it completes. */
  private void recordLent(Pair lender) {
    List<TensorEntry> fates = lender.borrowers.stream().map(p -> entry(nameOf(p))).toList();
    TensorEntry fate =
        fates.stream()
            .filter(e -> e.disposition() == Disposition.APPLIED)
            .findFirst()
            .orElse(fates.getFirst());
    Set<LoraTarget> targets = EnumSet.noneOf(LoraTarget.class);
    fates.forEach(e -> targets.addAll(e.targets()));
    String name = nameOf(lender);
    entries.put(
        name,
        new TensorEntry(
            name,
            String.valueOf(tensors.get(name)),
            fate.disposition(),
            fate.layer(),
            targets,
            fate.reason() + ", shared by " + fates.size() + " modules"));
  }

  private static String nameOf(Pair pair) {
    return pair.aName != null ? pair.aName : String.valueOf(pair.bName);
  }

  private void collect() {
    for (String tensor : tensors.keySet()) {
      AdapterKey key = AdapterKey.parse(tensor);
      ModulePlace place = places.find(key.module());
      boolean factor = key.part() == AdapterKey.Part.A || key.part() == AdapterKey.Part.B;
      if (place instanceof ModulePlace.Outside outside) {
        record(tensor, policy.outside(), outside.reason());
      } else if (factor) {
        Pair pair = pairs.computeIfAbsent(key.module(), m -> new Pair(m, place));
        addFactor(pair, key);
      } else {
        String reason =
            switch (key.part()) {
              case MAGNITUDE -> "a DoRA magnitude vector";
              case LORA_BIAS -> "a bias on a LoRA factor (lora_bias)";
              case EMBEDDING -> "embedding factors in a MoE block";
              default -> "a weight or bias of the block itself (modules_to_save or bias)";
            };
        spoiled.put(key.module(), reason);
        record(tensor, policy.inBlock(), reason);
      }
    }
  }

  private void addFactor(Pair pair, AdapterKey key) {
    Tensor tensor = tensors.get(key.tensor());
    boolean isA = key.part() == AdapterKey.Part.A;
    if ((isA ? pair.aName : pair.bName) != null) {
      record(key.tensor(), Action.REFUSE, "a second lora_" + key.part() + " for " + pair.source());
    } else if (isA) {
      pair.aName = key.tensor();
      pair.a = tensor;
    } else {
      pair.bName = key.tensor();
      pair.b = tensor;
    }
  }

  /** A step that may find a problem. */
  private interface Step {
    void run() throws Problem;
  }

  private void attempt(Pair pair, Step step) {
    try {
      step.run();
    } catch (Problem p) {
      record(pair, p.damage ? Action.REFUSE : policy.inBlock(), p.reason);
    }
  }

  private void record(Pair pair, Action action, String reason) {
    if (pair.aName != null) {
      record(pair.aName, action, reason);
    }
    if (pair.bName != null) {
      record(pair.bName, action, reason);
    }
  }

  private void record(String tensor, Action action, String reason) {
    entries.put(
        tensor,
        new TensorEntry(
            tensor,
            String.valueOf(tensors.get(tensor)),
            action == Action.REFUSE ? Disposition.REFUSED : Disposition.SKIPPED,
            Optional.empty(),
            Set.of(),
            reason));
  }

  /** What holds for every pair in a block, before its shapes are looked at. */
  private void requireApplicable(Pair pair) throws Problem {
    if (pair.place instanceof ModulePlace.Unappliable u) {
      throw Problem.unappliable(u.reason());
    }
    Tensor a = pair.a();
    Tensor b = pair.b();
    for (Tensor t : List.of(a, b)) {
      if (t.dtype() != DType.F32 && t.dtype() != DType.BF16 && t.dtype() != DType.F16) {
        throw Problem.damage("its factors are " + t.dtype() + "; accepted are F32, BF16 and F16");
      }
      if (!FactorPacker.isFinite(t)) {
        throw Problem.damage("it holds NaN or infinite values");
      }
    }
    if (!config.variants().isEmpty()) {
      throw Problem.unappliable(
          "the adapter uses " + String.join(", ", config.variants()) + ", not plain LoRA");
    }
    String reason = spoiled.get(pair.module);
    if (reason == null && pair.lender != null) {
      reason = spoiled.get(pair.lender.module);
    }
    if (reason != null) {
      throw Problem.unappliable("its module has " + reason);
    }
  }

  private void resolve(Pair pair, WrapperResolver wrappers) throws Problem {
    requireApplicable(pair);
    List<Contribution> found =
        switch (pair.place) {
          case ModulePlace.Expert e -> single(pair, e.layer(), e.target(), e.expert());
          case ModulePlace.ExpertGateUp e -> gateUp(pair, e);
          case ModulePlace.Dense d -> single(pair, d.layer(), d.target(), AdapterAssembler.ALL);
          case ModulePlace.DenseGateUp d -> sharedGateUp(pair, d);
          case ModulePlace.Wrapper w -> wrappers.resolve(pair);
          case ModulePlace.Named n ->
              n.ofModule()
                  ? wrappers.resolve(pair, n)
                  : StackedFactors.named(pair, n, model, scales);
          case ModulePlace.Stacked s -> StackedFactors.stacked(pair, s, model, scales);
          case ModulePlace.Outside o -> throw Problem.unappliable(o.reason());
          case ModulePlace.Unappliable u -> throw Problem.unappliable(u.reason());
        };
    for (Contribution c : found) {
      if (c.rank() > policy.maxRank()) {
        throw Problem.damage("rank " + c.rank() + " is over the maximum " + policy.maxRank());
      }
    }
    requireUnclaimed(pair, found);
    contributions.addAll(found);
    Set<LoraTarget> targets = EnumSet.noneOf(LoraTarget.class);
    found.forEach(c -> targets.add(c.target()));
    Contribution first = found.getFirst();
    for (String name : Stream.of(pair.aName, pair.bName).filter(Objects::nonNull).toList()) {
      entries.put(
          name,
          new TensorEntry(
              name,
              String.valueOf(tensors.get(name)),
              Disposition.APPLIED,
              Optional.of(first.layer()),
              targets,
              "rank " + first.rank() + ", scale " + AdapterScales.text(first.scale())));
    }
  }

  /** Two pairs for one linear map would have to be added up; no writer means that. */
  private void requireUnclaimed(Pair pair, List<Contribution> found) throws Problem {
    Set<String> claims = new HashSet<>();
    for (Contribution c : found) {
      String map = c.layer() + " " + c.target();
      claims.add(map + " " + c.expert());
      Pair whole = owners.get(map + " " + AdapterAssembler.ALL);
      Pair any = owners.get(map);
      Pair same = owners.get(map + " " + c.expert());
      Pair other = same != null ? same : c.expert() == AdapterAssembler.ALL ? any : whole;
      if (other != null) {
        throw Problem.damage(
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

  private List<Contribution> single(Pair pair, int layer, LoraTarget target, int expert)
      throws Problem {
    MoeConfig layerConfig = layerConfig(model, layer);
    long in = TargetSizes.in(target, layerConfig);
    long out = TargetSizes.out(target, layerConfig);
    SharedFactors.One one = SharedFactors.ofOne(pair, in, out, target + " of layer " + layer);
    double scale = scales.scale(pair.module, one.rank());
    return List.of(new Contribution(layer, target, expert, one.a(), one.b(), scale, pair.source()));
  }

  private List<Contribution> gateUp(Pair pair, ModulePlace.ExpertGateUp place) throws Problem {
    MoeConfig layerConfig = layerConfig(model, place.layer());
    SharedFactors.One one =
        SharedFactors.ofOne(
            pair,
            layerConfig.expertHiddenSize(),
            2L * layerConfig.intermediateSize(),
            "gate and up of an expert of layer " + place.layer());
    return WrapperResolver.contributions(
        place.layer(),
        Kind.GATE_UP,
        place.expert(),
        one.a(),
        one.b(),
        model.gateUp(),
        scales.scale(pair.module, one.rank()),
        pair.source());
  }

  /** Gate rows come first, whatever the order in the routed experts is. */
  private List<Contribution> sharedGateUp(Pair pair, ModulePlace.DenseGateUp place) throws Problem {
    MoeConfig layerConfig = layerConfig(model, place.layer());
    long in = TargetSizes.in(LoraTarget.SHARED_UP, layerConfig);
    long half = TargetSizes.out(LoraTarget.SHARED_UP, layerConfig);
    SharedFactors.One one =
        SharedFactors.ofOne(
            pair, in, 2 * half, "gate and up of the shared expert of layer " + place.layer());
    double scale = scales.scale(pair.module, one.rank());
    int layer = place.layer();
    int all = AdapterAssembler.ALL;
    Tensor gate = one.b().narrow(1, 0, half);
    Tensor up = one.b().narrow(1, half, half);
    String source = pair.source();
    return List.of(
        new Contribution(layer, LoraTarget.SHARED_GATE, all, one.a(), gate, scale, source),
        new Contribution(layer, LoraTarget.SHARED_UP, all, one.a(), up, scale, source));
  }

  static MoeConfig layerConfig(AdapterTargetModel model, int layer) {
    MoeConfig config = model.layers().get(layer);
    if (config == null) {
      throw new IllegalStateException("layer " + layer + " is no MoE layer");
    }
    return config;
  }
}
