package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.util.Collection;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeSet;
import org.jspecify.annotations.Nullable;

/** Finds the place of a module in a model. Names of files and of modelling code both count. */
final class ModulePlaces {
  private static final String BASE_LAYER = ".base_layer";
  private static final ModulePlace NOT_IN_A_BLOCK =
      new ModulePlace.Outside("not in a MoE block (attention, embedding, norm or head)");
  private static final ModulePlace BESIDE_A_BLOCK =
      new ModulePlace.Outside("beside the MoE block, and no part of it");
  private static final String GATE_UP = "gate_up_proj";

  private final AdapterTargetModel model;
  private final AdapterConfig.Form form;
  private final CheckpointLayout layout;
  private final Map<String, LoraTarget> projections = new HashMap<>();
  private final Set<String> roots;

  /**
   * @param model the model
   * @param form whose adapter it is
   * @param modules names of all modules that will be asked for
   */
  ModulePlaces(AdapterTargetModel model, AdapterConfig.Form form, Collection<String> modules) {
    this.model = model;
    this.form = form;
    this.layout = model.layout();
    projections.putAll(
        Map.of(
            "gate_proj", LoraTarget.GATE,
            "up_proj", LoraTarget.UP,
            "down_proj", LoraTarget.DOWN,
            "w1", LoraTarget.GATE,
            "w3", LoraTarget.UP,
            "w2", LoraTarget.DOWN));
    layout
        .projectionNames()
        .forEach((name, projection) ->
            projections.put(
                name,
                switch (projection) {
                  case "gate" -> LoraTarget.GATE;
                  case "up" -> LoraTarget.UP;
                  default -> LoraTarget.DOWN;
                }));
    this.roots = roots(modules);
  }

  /** The roots under which modules of MoE blocks of this model stand. */
  private Set<String> roots(Collection<String> modules) {
    Set<String> roots = new TreeSet<>();
    for (String module : modules) {
      for (BlockPath path : layout.blocks()) {
        path.match(module + ".")
            .filter(m -> model.layers().containsKey(m.layer()))
            .filter(m -> OutsideNames.otherTower(m.root(), model).isEmpty())
            .ifPresent(m -> roots.add(m.root()));
      }
    }
    return roots;
  }

  /**
   * The place of a module.
   *
   * @param module its name without PEFT's prefix
   */
  ModulePlace find(String module) {
    for (BlockPath path : layout.blocks()) {
      Optional<BlockPath.Match> match = path.match(module + ".");
      if (match.isPresent()) {
        return inBlock(module, match.get());
      }
    }
    return outsideBlocks(module);
  }

  /** Nothing is taken for attention because it is not known. */
  private ModulePlace outsideBlocks(String module) {
    for (BlockPath path : layout.outside()) {
      Optional<BlockPath.Match> match = path.match(module + ".");
      if (match.isPresent()) {
        return OutsideNames.otherTower(match.get().root(), model)
            .map(ModulePlaces::underTower)
            .orElse(BESIDE_A_BLOCK);
      }
    }
    for (BlockPath path : layout.blocks()) {
      Optional<BlockPath.Match> match = path.matchLayer(module + ".");
      if (match.isPresent()) {
        return besideBlock(match.get());
      }
    }
    Optional<String> tower = OutsideNames.otherTower(module, model);
    if (tower.isPresent()) {
      return underTower(tower.get());
    }
    return OutsideNames.looksLikeBlock(module)
        ? new ModulePlace.Unappliable(
            "it looks like a part of a MoE block, but the blocks of this model are "
                + layout.blocks())
        : NOT_IN_A_BLOCK;
  }

  private ModulePlace besideBlock(BlockPath.Match match) {
    Optional<String> tower = OutsideNames.otherTower(match.root(), model);
    if (tower.isPresent()) {
      return underTower(tower.get());
    }
    int layer = match.layer();
    if (OutsideNames.isBesideTheBlock(match.rest())) {
      return NOT_IN_A_BLOCK;
    }
    if (!model.layers().containsKey(layer)) {
      return inOtherLayer(layer, !OutsideNames.looksLikeExperts(match.rest()));
    }
    String rest = match.rest().substring(0, Math.max(0, match.rest().length() - 1));
    return new ModulePlace.Unappliable(
        "'"
            + StrictJson.shorten(rest)
            + "' of layer "
            + layer
            + " is neither in its MoE block ("
            + String.join(" or ", layout.blocks().stream().map(BlockPath::blockName).toList())
            + ") nor attention or a norm");
  }

  private static ModulePlace underTower(String tower) {
    return new ModulePlace.Outside(
        "under '" + StrictJson.shorten(tower) + "', not in the language model");
  }

  /** In a layer without routed experts. */
  private ModulePlace inOtherLayer(int layer, boolean dense) {
    if (layer >= model.numLayers() + model.predictionLayers()) {
      return new ModulePlace.Unappliable(
          "layer " + layer + " is beyond the model's " + model.numLayers() + " layers", true);
    }
    if (layer >= model.numLayers()) {
      return new ModulePlace.Outside(
          "layer " + layer + " is for multi-token prediction, which is not computed");
    }
    return dense
        ? new ModulePlace.Outside("layer " + layer + " is no MoE layer")
        : new ModulePlace.Unappliable(
            "layer " + layer + " has no routed experts in this model", true);
  }

  private ModulePlace inBlock(String module, BlockPath.Match match) {
    Optional<String> tower = OutsideNames.otherTower(match.root(), model);
    if (tower.isPresent()) {
      return underTower(tower.get());
    }
    int layer = match.layer();
    String rest =
        match.rest().isEmpty() ? "" : match.rest().substring(0, match.rest().length() - 1);
    MoeConfig config = model.layers().get(layer);
    if (config == null) {
      return inOtherLayer(layer, !OutsideNames.looksLikeExperts(rest) && !isRouter(rest));
    }
    if (roots.size() > 1 && !model.root().equals(Optional.of(match.root()))) {
      return new ModulePlace.Unappliable(
          "the adapter has MoE blocks under several roots: "
              + StrictJson.shorten(
                  String.join(", ", roots.stream().map(r -> "'" + r + "'").toList()))
              + model
                  .root()
                  .map(r -> "; the model's is '" + StrictJson.shorten(r) + "'")
                  .orElse(""));
    }
    return inMoeBlock(module, rest, layer, config);
  }

  private ModulePlace inMoeBlock(String module, String rest, int layer, MoeConfig config) {
    Optional<ModulePlace> expert = byTemplate(rest, layer, config);
    if (expert.isPresent()) {
      return expert.get();
    }
    if (rest.equals("experts") || rest.startsWith("experts" + BASE_LAYER)) {
      return wrapper(module, rest, layer);
    }
    if (rest.startsWith("experts.")) {
      return expertModule(rest.substring("experts.".length()), layer, config);
    }
    Optional<FusedParameter> own = ofModule(rest, config);
    if (own.isPresent()) {
      return new ModulePlace.Named(layer, own.get(), true);
    }
    if (layout.routerBiases().contains(rest)) {
      return new ModulePlace.Unappliable("the router's bias");
    }
    if (isRouter(rest)) {
      // mlx-lm has its own modelling code, which calls the router as a linear layer.
      if (form == AdapterConfig.Form.PEFT && !layout.routerAdapters()) {
        return new ModulePlace.Outside(
            "on the router, whose bare weight "
                + layout.modelType()
                + " multiplies with: PEFT's factors have no effect there");
      }
      return new ModulePlace.Router(layer);
    }
    for (SharedForm shared : layout.sharedExperts()) {
      Optional<ModulePlace> found = sharedModule(shared, rest, layer, config);
      if (found.isPresent()) {
        return found.get();
      }
    }
    return otherDense(rest, layer, config);
  }

  private ModulePlace wrapper(String module, String rest, int layer) {
    String tail = rest.substring("experts".length());
    int depth = 0;
    while (tail.startsWith(BASE_LAYER)) {
      depth++;
      tail = tail.substring(BASE_LAYER.length());
    }
    if (!tail.isEmpty()) {
      return unknown(rest, layer);
    }
    String experts = module.substring(0, module.length() - depth * BASE_LAYER.length());
    return new ModulePlace.Wrapper(layer, experts, depth);
  }

  private ModulePlace expertModule(String name, int layer, MoeConfig config) {
    for (FusedParameter parameter : layout.fusedParameters()) {
      boolean isFused = parameter.kind() == Kind.GATE_UP || parameter.kind() == Kind.BIAS;
      if (parameter.name().equals(name) && isFused) {
        return parameter.kind() == Kind.BIAS
            ? new ModulePlace.Unappliable("the experts' bias " + name)
            : new ModulePlace.Named(layer, parameter, false);
      }
    }
    LoraTarget stacked = projection(name, config);
    if (stacked != null) {
      return appliable(new ModulePlace.Stacked(layer, stacked), stacked, layer, config);
    }
    int dot = name.indexOf('.');
    if (dot < 0) {
      return unknown("experts." + name, layer);
    }
    String first = name.substring(0, dot);
    String second = name.substring(dot + 1);
    boolean listed = first.endsWith("s") && !second.isEmpty() && isDigits(second);
    // One list a projection (gate_up_projs.3, as 4-bit gpt_oss keeps its experts), or one module an
    // expert (3.up_proj).
    String index = listed ? second : first;
    String module = listed ? first.substring(0, first.length() - 1) : second;
    if (module.equals(GATE_UP) && config.activation().isGated()) {
      return isExpert(index, config)
          ? new ModulePlace.ExpertGateUp(layer, Integer.parseInt(index))
          : noExpert(index, layer, config);
    }
    LoraTarget target = projection(module, config);
    return target == null
        ? unknown("experts." + name, layer)
        : oneExpert(index, target, layer, config);
  }

  /** Where experts have no gate, w1 is what w3 is elsewhere. */
  private @Nullable LoraTarget projection(String name, MoeConfig config) {
    LoraTarget target = projections.get(name);
    return target == LoraTarget.GATE && name.equals("w1") && !config.activation().isGated()
        ? LoraTarget.UP
        : target;
  }

  private static boolean isDigits(String text) {
    return text.chars().allMatch(c -> c >= '0' && c <= '9');
  }

  private static ModulePlace oneExpert(
      String index, LoraTarget target, int layer, MoeConfig config) {
    return isExpert(index, config)
        ? appliable(
            new ModulePlace.Expert(layer, Integer.parseInt(index), target), target, layer, config)
        : noExpert(index, layer, config);
  }

  private static boolean isExpert(String index, MoeConfig config) {
    return !index.isEmpty()
        && index.length() <= 6
        && isDigits(index)
        && (index.length() == 1 || index.charAt(0) != '0')
        && Integer.parseInt(index) < config.numExperts();
  }

  private static ModulePlace noExpert(String index, int layer, MoeConfig config) {
    return new ModulePlace.Unappliable(
        "expert "
            + StrictJson.shorten(index)
            + " of layer "
            + layer
            + ", which has "
            + config.numExperts(),
        isDigits(index));
  }

  /** An expert's projection under the names of the layout's own files. */
  private Optional<ModulePlace> byTemplate(String rest, int layer, MoeConfig config) {
    for (ExpertForm form : layout.forms()) {
      if (form instanceof ExpertForm.PerExpert p) {
        Map<LoraTarget, Optional<String>> templates =
            Map.of(
                LoraTarget.GATE, p.gate(),
                LoraTarget.UP, Optional.of(p.up()),
                LoraTarget.DOWN, Optional.of(p.down()));
        for (Map.Entry<LoraTarget, Optional<String>> t : templates.entrySet()) {
          Optional<String> index =
              t.getValue()
                  .flatMap(template -> ExpertForm.PerExpert.index(template, rest + ".weight"));
          if (index.isPresent()) {
            return Optional.of(oneExpert(index.get(), t.getKey(), layer, config));
          }
        }
      }
    }
    return Optional.empty();
  }

  private static ModulePlace appliable(
      ModulePlace place, LoraTarget target, int layer, MoeConfig config) {
    return target == LoraTarget.GATE && !config.activation().isGated()
        ? new ModulePlace.Unappliable(
            "a gate projection, but the experts of layer " + layer + " have no gate", true)
        : place;
  }

  /** Modules that hold one fused parameter called weight (granitemoe's input_linear). */
  private Optional<FusedParameter> ofModule(String rest, MoeConfig config) {
    for (ExpertForm form : layout.forms()) {
      if (form instanceof ExpertForm.Stacked s) {
        if (s.w13().equals(rest + ".weight")) {
          Kind kind = config.activation().isGated() ? Kind.GATE_UP : Kind.UP;
          return Optional.of(new FusedParameter("weight", kind, s.orientation(), false));
        }
        if (s.w2().equals(rest + ".weight")) {
          return Optional.of(new FusedParameter("weight", Kind.DOWN, s.orientation(), false));
        }
      }
    }
    return Optional.empty();
  }

  private boolean isRouter(String rest) {
    return rest.equals("gate")
        || rest.equals("router")
        || layout.routerWeights().stream().anyMatch(w -> w.equals(rest + ".weight"))
        || layout.routerBiases().stream().anyMatch(b -> b.equals(rest));
  }

  private static Optional<ModulePlace> sharedModule(
      SharedForm form, String rest, int layer, MoeConfig config) {
    LoraTarget target =
        form.gate().equals(Optional.of(rest))
            ? LoraTarget.SHARED_GATE
            : form.up().equals(rest)
                ? LoraTarget.SHARED_UP
                : form.down().equals(rest) ? LoraTarget.SHARED_DOWN : null;
    if (target == null) {
      return Optional.empty();
    }
    if (config.sharedExpert().isEmpty()) {
      return Optional.of(
          new ModulePlace.Unappliable("layer " + layer + " has no shared expert", true));
    }
    if (target == LoraTarget.SHARED_GATE && !config.sharedExpert().get().activation().isGated()) {
      return Optional.of(
          new ModulePlace.Unappliable(
              "the shared expert of layer " + layer + " has no gate", true));
    }
    return Optional.of(
        target == LoraTarget.SHARED_UP && form.fused()
            ? new ModulePlace.DenseGateUp(layer)
            : new ModulePlace.Dense(layer, target));
  }

  private ModulePlace otherDense(String rest, int layer, MoeConfig config) {
    if (layout.sharedExpertGate().equals(Optional.of(rest))) {
      return config.sharedExpert().map(s -> s.sigmoidGate()).orElse(false)
          ? new ModulePlace.Dense(layer, LoraTarget.SHARED_EXPERT_GATE)
          : new ModulePlace.Unappliable("layer " + layer + " has no shared-expert gate", true);
    }
    for (Map.Entry<Optional<String>, LoraTarget> latent :
        List.of(
            Map.entry(layout.latentIn(), LoraTarget.LATENT_IN),
            Map.entry(layout.latentOut(), LoraTarget.LATENT_OUT))) {
      if (latent.getKey().equals(Optional.of(rest))) {
        return config.latentSize() > 0
            ? new ModulePlace.Dense(layer, latent.getValue())
            : new ModulePlace.Unappliable("layer " + layer + " has no latent projections", true);
      }
    }
    return unknown(rest, layer);
  }

  private static ModulePlace unknown(String rest, int layer) {
    return new ModulePlace.Unappliable(
        "'"
            + StrictJson.shorten(rest)
            + "' in the MoE block of layer "
            + layer
            + " is not understood");
  }

  /**
   * Whether the model lacks a module, so that an adapter with nothing for it loses nothing.
   *
   * @param module its name
   * @param place what {@link #find} said
   */
  boolean isAbsent(String module, ModulePlace place) {
    if (place instanceof ModulePlace.Stacked s && module.endsWith(".w3")) {
      // Where experts have no gate, writers of three projections call up w1 and leave w3 empty.
      MoeConfig config = model.layers().get(s.layer());
      return config != null && !config.activation().isGated();
    }
    return place instanceof ModulePlace.Unappliable u && u.absent();
  }

  /** Dimensions 1 and 2 of a fused parameter as the modelling code stores it. */
  static long[] storedDims(FusedParameter parameter, MoeConfig config) {
    long h = config.expertHiddenSize();
    long i = config.intermediateSize();
    long out =
        switch (parameter.kind()) {
          case GATE_UP -> 2 * i;
          case UP -> i;
          case DOWN, BIAS -> h;
        };
    long in = parameter.kind() == Kind.DOWN ? i : h;
    return parameter.orientation() == Orientation.OUT_IN
        ? new long[] {out, in}
        : new long[] {in, out};
  }
}
