package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter;
import io.moe4j.checkpoint.CheckpointLayout.FusedParameter.Kind;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/** Finds the place of a module in a model. Names of files and of modelling code both count. */
final class ModulePlaces {
  private static final String BASE_LAYER = ".base_layer";
  private static final String GATE_UP = "gate_up_proj";

  /** Roots of towers whose layers are none of the language model's. */
  static final Set<String> OTHER_TOWERS =
      Set.of(
          "vision_model",
          "vision_tower",
          "visual",
          "vision",
          "vision_encoder",
          "audio_tower",
          "audio",
          "audio_model",
          "mtp",
          "talker",
          "code_predictor",
          "image_encoder");

  private final AdapterTargetModel model;
  private final CheckpointLayout layout;
  private final Map<String, LoraTarget> projections = new HashMap<>();

  ModulePlaces(AdapterTargetModel model) {
    this.model = model;
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
    return new ModulePlace.Outside("not in a MoE block (attention, embedding, norm or head)");
  }

  private ModulePlace inBlock(String module, BlockPath.Match match) {
    for (String tower : OTHER_TOWERS) {
      if (("." + match.root()).contains("." + tower + ".")) {
        return new ModulePlace.Outside("under '" + tower + "', not in the language model");
      }
    }
    int layer = match.layer();
    String rest =
        match.rest().isEmpty() ? "" : match.rest().substring(0, match.rest().length() - 1);
    MoeConfig config = model.layers().get(layer);
    if (config == null) {
      if (layer >= model.numLayers()) {
        return new ModulePlace.Unappliable(
            "layer " + layer + " is beyond the model's " + model.numLayers() + " layers");
      }
      return rest.startsWith("experts") || isRouter(rest)
          ? new ModulePlace.Unappliable("layer " + layer + " has no routed experts in this model")
          : new ModulePlace.Outside("layer " + layer + " is no MoE layer");
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
    if (isRouter(rest)) {
      return new ModulePlace.Unappliable("the router; changing it changes who computes a token");
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
            + config.numExperts());
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
            "a gate projection, but the experts of layer " + layer + " have no gate")
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
      return Optional.of(new ModulePlace.Unappliable("layer " + layer + " has no shared expert"));
    }
    if (target == LoraTarget.SHARED_GATE && !config.sharedExpert().get().activation().isGated()) {
      return Optional.of(
          new ModulePlace.Unappliable("the shared expert of layer " + layer + " has no gate"));
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
          : new ModulePlace.Unappliable("layer " + layer + " has no shared-expert gate");
    }
    for (Map.Entry<Optional<String>, LoraTarget> latent :
        List.of(
            Map.entry(layout.latentIn(), LoraTarget.LATENT_IN),
            Map.entry(layout.latentOut(), LoraTarget.LATENT_OUT))) {
      if (latent.getKey().equals(Optional.of(rest))) {
        return config.latentSize() > 0
            ? new ModulePlace.Dense(layer, latent.getValue())
            : new ModulePlace.Unappliable("layer " + layer + " has no latent projections");
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
