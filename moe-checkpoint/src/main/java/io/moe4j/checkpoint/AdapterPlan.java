package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterAssembler.Contribution;
import io.moe4j.checkpoint.AdapterPolicy.Action;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.HashMap;
import java.util.HashSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
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

    /** Tensors that shapes have not been checked of yet, but that can be spoken of as 32 bits. */
    boolean isTooLarge() {
      return Stream.of(Optional.ofNullable(a), Optional.ofNullable(b))
          .flatMap(Optional::stream)
          .anyMatch(t -> Arrays.stream(t.shape()).anyMatch(n -> n > Integer.MAX_VALUE));
    }

    /** {@code [0]}: nothing but a mark that the module has no such projection. */
    boolean isEmpty() {
      return Stream.of(Optional.ofNullable(a), Optional.ofNullable(b))
          .flatMap(Optional::stream)
          .allMatch(t -> t.dims() == 1 && t.size(0) == 0);
    }
  }

  /** Why a tensor is not applied: who decides what that means. */
  private enum Fate {
    /** Refused whatever the policy. */
    DAMAGE,
    /** The policy decides for what is in a block. */
    IN_BLOCK,
    /** The policy decides for what is outside. */
    OUTSIDE,
    /** Left out whatever the policy. */
    SKIP
  }

  private final AdapterConfig config;
  private final AdapterTargetModel model;
  private final AdapterPolicy policy;
  private final Map<String, Tensor> tensors;
  private final Map<String, String> unreadable;
  private final Map<String, AdapterKey> keys = new LinkedHashMap<>();
  private final ModulePlaces places;
  private final AdapterScales scales;
  private final WrapperResolver wrappers;
  private final Map<String, Pair> pairs = new LinkedHashMap<>();
  private final Map<String, String> spoiled = new HashMap<>();
  private final Map<String, TensorEntry> entries = new LinkedHashMap<>();
  private final Map<Pair, List<Contribution>> contributions = new LinkedHashMap<>();
  private final LinkedHashSet<String> notes = new LinkedHashSet<>();
  private Optional<String> promise = Optional.empty();
  private boolean leftOutOfBlocks;
  private final Set<Fate> refusals = EnumSet.noneOf(Fate.class);
  private final Map<String, Pair> owners = new HashMap<>();

  AdapterPlan(
      AdapterConfig config,
      AdapterTargetModel model,
      AdapterPolicy policy,
      ShardedTensors file,
      String where) {
    this.config = config;
    this.model = model;
    this.policy = policy;
    this.tensors = file.tensors();
    this.unreadable = file.problems();
    tensors.keySet().forEach(t -> keys.put(t, AdapterKey.parse(t)));
    unreadable.keySet().forEach(t -> keys.put(t, AdapterKey.parse(t)));
    this.places = new ModulePlaces(model, keys.values().stream().map(AdapterKey::module).toList());
    this.scales = new AdapterScales(config, where, notes);
    this.wrappers = new WrapperResolver(config, model, policy, scales, notes);
  }

  /** One entry a tensor, in the order of the file. */
  List<TensorEntry> entries() {
    return keys.keySet().stream().map(this::entry).toList();
  }

  private TensorEntry entry(String tensor) {
    TensorEntry entry = entries.get(tensor);
    if (entry == null) {
      throw new IllegalStateException("tensor '" + tensor + "' was not accounted for");
    }
    return entry;
  }

  List<Contribution> contributions() {
    return contributions.values().stream().flatMap(List::stream).toList();
  }

  Set<String> notes() {
    return notes;
  }

  /** Which policy would load the adapter; empty if it is not refused. */
  String advice() {
    if (refusals.isEmpty()) {
      return "";
    }
    if (refusals.contains(Fate.DAMAGE)) {
      return "no policy loads what is damaged";
    }
    return refusals.contains(Fate.IN_BLOCK)
        ? "AdapterPolicy.LENIENT loads the rest, which is another model than was trained"
        : "AdapterPolicy.DEFAULT leaves that out, which does not change the MoE blocks";
  }

  void run() {
    collect();
    SharedFactors.lend(pairs.values());
    for (Pair pair : pairs.values()) {
      if (pair.isEmpty()) {
        recordEmpty(pair);
      } else if (pair.isTooLarge()) {
        record(pair, Fate.DAMAGE, "a side of its factors is over " + Integer.MAX_VALUE);
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
        attempt(pair, () -> resolve(pair));
      }
    }
    for (Pair pair : pairs.values()) {
      if (!pair.borrowers.isEmpty()) {
        recordLent(pair);
      }
    }
    requirePromised();
  }

  /**
   * Where a layer has factors for one of the experts' parameters that the config targets, it has
   * them for all; an adapter that has none at all was saved without them. What is in a block and
   * left out for other reasons may be what is missing, so nothing is said then.
   */
  private void requirePromised() {
    if (!refusals.isEmpty() || leftOutOfBlocks) {
      return;
    }
    Map<Integer, Set<LoraTarget>> byLayer = new TreeMap<>();
    contributions().stream()
        .filter(c -> c.target().isRouted())
        .forEach(c ->
            byLayer
                .computeIfAbsent(c.layer(), l -> EnumSet.noneOf(LoraTarget.class))
                .add(c.target()));
    Set<String> missing = new LinkedHashSet<>();
    for (int layer : byLayer.isEmpty() ? model.layers().keySet() : byLayer.keySet()) {
      Set<LoraTarget> there = byLayer.getOrDefault(layer, Set.of());
      for (FusedParameter p : wrappers.targeted(layer)) {
        boolean down = p.kind() == Kind.DOWN;
        if (there.stream().noneMatch(t -> (t == LoraTarget.DOWN) == down)) {
          missing.add(p.name() + " of layer " + layer);
        }
      }
    }
    if (!missing.isEmpty()) {
      breakPromise(
          "target_parameters name parameters of the experts that the file holds no factors for: "
              + StrictJson.shorten(String.join(", ", missing)));
      return;
    }
    // Had the file held one, it would have been left out of its block above.
    List<String> unsaved =
        config.modulesToSave().stream().filter(s -> !s.isBlank() && isInBlocks(s)).toList();
    if (!unsaved.isEmpty()) {
      breakPromise(
          "modules_to_save names parts of the MoE blocks that the file does not hold: "
              + StrictJson.shorten(String.join(", ", unsaved)));
    }
  }

  private void breakPromise(String reason) {
    notes.add(reason);
    if (policy.inBlock() == Action.REFUSE) {
      refusals.add(Fate.IN_BLOCK);
      promise = Optional.of(reason);
    }
  }

  /** Whether PEFT would take a block, its experts or its router by this end of a name. */
  private boolean isInBlocks(String end) {
    CheckpointLayout layout = model.layout();
    return model.layers().keySet().stream()
        .flatMap(layer -> layout.blocks().stream().map(b -> b.of(layer)))
        .flatMap(block ->
            Stream.concat(
                Stream.of(block, block + ".experts"),
                layout.routerWeights().stream()
                    .map(w -> block + "." + w.replaceFirst("\\.weight$", ""))))
        .anyMatch(name -> name.endsWith(end) || end.endsWith("." + name));
  }

  /** What the config promises and the file lacks, if that refuses the adapter. */
  Optional<String> brokenPromise() {
    return promise;
  }

  /** Nothing for a module that the model lacks is harmless; nothing for one it has is damage. */
  private void recordEmpty(Pair pair) {
    if (places.isAbsent(pair.module, pair.place)) {
      record(pair, Fate.SKIP, "an empty placeholder for what the model lacks");
    } else if (pair.place instanceof ModulePlace.Unappliable u) {
      record(pair, Fate.IN_BLOCK, u.reason());
    } else {
      record(
          pair,
          Fate.DAMAGE,
          "its factors are empty, [0]: a file saved under DeepSpeed ZeRO-3 or FSDP without gathering"
              + " the parameters looks like this");
    }
  }

  /**
   * Refuses pairs with NaN or infinite values. Reads every element, so it comes after the shapes
   * and what they will take have been checked.
   */
  void requireFinite() {
    if (!contributions.isEmpty()
        && contributions().stream().map(Contribution::b).allMatch(FactorPacker::isZero)) {
      notes.add(
          "every lora_B is zero, so this adapter changes nothing: it was not trained, or was saved"
              + " before it was");
    }
    IdentityHashMap<Tensor, Boolean> finite = new IdentityHashMap<>();
    for (Pair pair : List.copyOf(contributions.keySet())) {
      try {
        if (!finite.computeIfAbsent(pair.a(), FactorPacker::isFinite)
            || !finite.computeIfAbsent(pair.b(), FactorPacker::isFinite)) {
          throw Problem.damage("it holds NaN or infinite values");
        }
      } catch (Problem p) {
        contributions.remove(pair);
        record(pair, Fate.DAMAGE, p.reason);
        if (pair.lender != null) {
          record(pair.lender, Fate.DAMAGE, p.reason);
        }
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
    Map<String, ModulePlace> found = new HashMap<>();
    int emptyOutside = 0;
    for (AdapterKey key : keys.values()) {
      String tensor = key.tensor();
      ModulePlace place = found.computeIfAbsent(key.module(), places::find);
      boolean factor = key.part() == AdapterKey.Part.A || key.part() == AdapterKey.Part.B;
      if (place instanceof ModulePlace.Outside outside) {
        record(tensor, Fate.OUTSIDE, outside.reason());
        Tensor t = tensors.get(tensor);
        emptyOutside += factor && t != null && t.elementCount() == 0 ? 1 : 0;
      } else if (unreadable.containsKey(tensor)) {
        record(tensor, Fate.DAMAGE, "it " + unreadable.get(tensor));
        spoiled.put(key.module(), "a tensor that cannot be read");
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
        record(tensor, Fate.IN_BLOCK, reason);
      }
    }
    if (emptyOutside > 0) {
      notes.add(
          emptyOutside
              + " factors outside the MoE blocks are empty; the file may have been saved without"
              + " gathering the parameters");
    }
  }

  private void addFactor(Pair pair, AdapterKey key) {
    Tensor tensor = tensors.get(key.tensor());
    boolean isA = key.part() == AdapterKey.Part.A;
    if ((isA ? pair.aName : pair.bName) != null) {
      record(key.tensor(), Fate.DAMAGE, "a second lora_" + key.part() + " for " + pair.source());
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
      record(pair, p.damage ? Fate.DAMAGE : Fate.IN_BLOCK, p.reason);
    }
  }

  private void record(Pair pair, Fate fate, String reason) {
    if (pair.aName != null) {
      record(pair.aName, fate, reason);
    }
    if (pair.bName != null) {
      record(pair.bName, fate, reason);
    }
  }

  private void record(String tensor, Fate fate, String reason) {
    boolean refused =
        switch (fate) {
          case DAMAGE -> true;
          case IN_BLOCK -> policy.inBlock() == Action.REFUSE;
          case OUTSIDE -> policy.outside() == Action.REFUSE;
          case SKIP -> false;
        };
    if (refused) {
      refusals.add(fate);
    }
    leftOutOfBlocks |= fate == Fate.IN_BLOCK;
    entries.put(
        tensor,
        new TensorEntry(
            tensor,
            described(tensor),
            refused ? Disposition.REFUSED : Disposition.SKIPPED,
            Optional.empty(),
            Set.of(),
            reason));
  }

  private String described(String tensor) {
    return tensors.containsKey(tensor) ? String.valueOf(tensors.get(tensor)) : "not read";
  }

  /** What holds for every pair in a block, before its shapes are looked at. */
  private void requireApplicable(Pair pair) throws Problem {
    if (pair.place instanceof ModulePlace.Unappliable u) {
      throw Problem.unappliable(u.reason());
    }
    if (pair.place instanceof ModulePlace.Router && !policy.applyRouter()) {
      throw Problem.unappliable(
          "the router; changing it changes who computes a token, which"
              + " AdapterPolicy.withRouter(true) allows");
    }
    Tensor a = pair.a();
    Tensor b = pair.b();
    for (Tensor t : List.of(a, b)) {
      if (t.dtype() != DType.F32 && t.dtype() != DType.BF16 && t.dtype() != DType.F16) {
        throw Problem.damage("its factors are " + t.dtype() + "; accepted are F32, BF16 and F16");
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

  private void resolve(Pair pair) throws Problem {
    requireApplicable(pair);
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
          case ModulePlace.Outside o -> throw Problem.unappliable(o.reason());
          case ModulePlace.Unappliable u -> throw Problem.unappliable(u.reason());
        };
    for (Contribution c : found) {
      if (c.rank() > policy.maxRank()) {
        throw Problem.damage("rank " + c.rank() + " is over the maximum " + policy.maxRank());
      }
    }
    requireUnclaimed(pair, found);
    contributions.put(pair, found);
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
    double scale = scales.scale(wrappers.trained(pair.module), one.rank());
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
        scales.scale(wrappers.trained(pair.module), one.rank()),
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
    double scale = scales.scale(wrappers.trained(pair.module), one.rank());
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
