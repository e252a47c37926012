package io.moe4j.checkpoint;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;

/**
 * How one family of models names and stores its MoE blocks: data as far as it goes, plus {@link
 * Rules} that read its {@code config.json}. Immutable. Describe a model that this library does not
 * know with {@link #builder(String)} and pass the result to {@link CheckpointOptions}:
 *
 * <pre>{@code
 * CheckpointLayout layout =
 *     CheckpointLayout.builder("my_moe")
 *         .block("layers.{L}.mlp")
 *         .perExpert("experts.{E}.gate_proj", "experts.{E}.up_proj", "experts.{E}.down_proj")
 *         .router("gate.weight")
 *         .rules((config, layer) ->
 *             MoeConfig.builder(
 *                 config.requireInt("hidden_size"),
 *                 config.requireInt("moe_intermediate_size"),
 *                 config.requireInt("num_experts"),
 *                 config.requireInt("num_experts_per_tok")))
 *         .build();
 * MoeCheckpoint.open(dir, CheckpointOptions.DEFAULT.withLayout(layout));
 * }</pre>
 */
public final class CheckpointLayout {
  /** Reads a family's {@code config.json}. */
  @FunctionalInterface
  public interface Rules {
    /**
     * What the config says about one MoE layer. Sizes, activation, routing and router weight on
     * input are taken from here; dtype, biases, shared expert and latent size from the tensors.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @return a builder, not yet built
     */
    MoeConfig.Builder block(ModelConfig config, int layer);

    /**
     * Whether the config says that a layer has routed experts; a layer that should and has none in
     * the files is an error.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @return true unless the config says otherwise
     */
    default boolean isMoeLayer(ModelConfig config, int layer) {
      return true;
    }

    /**
     * The number of decoder layers; MoE blocks of later layers (multi-token prediction) are left
     * out.
     *
     * @param config the language model's part of config.json
     * @return at least 1
     */
    default int numLayers(ModelConfig config) {
      return config.requireInt("num_hidden_layers");
    }

    /**
     * The width of the shared expert that the config promises. The files must hold just that.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @return {@code I_s}, 0 for none, empty where the config does not say
     */
    default OptionalInt sharedExpertSize(ModelConfig config, int layer) {
      return OptionalInt.empty();
    }

    /**
     * Whether the shared expert has biases by the config. The files must then hold them; if not,
     * they may.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @return false unless the config says otherwise
     */
    default boolean hasSharedExpertBias(ModelConfig config, int layer) {
      return false;
    }

    /**
     * Whether the router has its bias by the config; asked only of layouts that name one. The files
     * must then hold it; if not, they may.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @return true unless the config says otherwise
     */
    default boolean hasRouterBias(ModelConfig config, int layer) {
      return true;
    }
  }

  private final String modelType;
  private final List<BlockPath> blocks;
  private final List<ExpertForm> forms;
  private final List<String> routerWeights;
  private final List<String> routerBiases;
  private final List<String> correctionBiases;
  private final List<String> sharedExperts;
  private final Optional<String> sharedExpertGate;
  private final Optional<String> latentIn;
  private final Optional<String> latentOut;
  private final List<FusedParameter> fusedParameters;
  private final Map<String, String> projectionNames;
  private final Rules rules;

  /**
   * A tensor that the modelling code holds for all experts together, which an adapter may target
   * ({@code target_parameters}). The order of declaration matters: wrappers nest in it.
   *
   * @param name like {@code gate_up_proj}
   * @param kind what it is
   * @param orientation how the modelling code stores it
   * @param isTransposed whether the class says {@code is_transposed} (gpt_oss), which PEFT looks at
   */
  public record FusedParameter(
      String name, Kind kind, Orientation orientation, boolean isTransposed) {
    /** What a fused parameter is. */
    public enum Kind {
      /** Gate and up rows together. */
      GATE_UP,
      /** Up rows of experts without gate. */
      UP,
      /** Down. */
      DOWN,
      /** A bias, {@code [E, out]}. */
      BIAS
    }
  }

  private CheckpointLayout(Builder b) {
    this.modelType = b.modelType;
    this.blocks = List.copyOf(b.blocks);
    this.forms = List.copyOf(b.forms);
    this.routerWeights = List.copyOf(b.routerWeights);
    this.routerBiases = List.copyOf(b.routerBiases);
    this.correctionBiases = List.copyOf(b.correctionBiases);
    this.sharedExperts = List.copyOf(b.sharedExperts);
    this.sharedExpertGate = Optional.ofNullable(b.sharedExpertGate);
    this.latentIn = Optional.ofNullable(b.latentIn);
    this.latentOut = Optional.ofNullable(b.latentOut);
    this.fusedParameters = List.copyOf(b.fusedParameters);
    this.projectionNames = Map.copyOf(b.projectionNames);
    this.rules = Objects.requireNonNull(b.rules, "rules");
  }

  /** {@return the {@code model_type} in config.json} */
  public String modelType() {
    return modelType;
  }

  /** {@return where blocks stand; files and modelling code may use different names} */
  public List<BlockPath> blocks() {
    return blocks;
  }

  /** {@return how routed experts may be stored, the usual form first} */
  public List<ExpertForm> forms() {
    return forms;
  }

  /** {@return names of the router's weight {@code [E, H]}} */
  public List<String> routerWeights() {
    return routerWeights;
  }

  /** {@return names of the router's bias {@code [E]}} */
  public List<String> routerBiases() {
    return routerBiases;
  }

  /** {@return names of the bias {@code [E]} that counts for the choice only} */
  public List<String> correctionBiases() {
    return correctionBiases;
  }

  /** {@return names of the shared expert's module} */
  public List<String> sharedExperts() {
    return sharedExperts;
  }

  /** {@return the name of the gate on the shared expert's output} */
  public Optional<String> sharedExpertGate() {
    return sharedExpertGate;
  }

  /** {@return the name of the projection in front of the experts} */
  public Optional<String> latentIn() {
    return latentIn;
  }

  /** {@return the name of the projection behind the experts} */
  public Optional<String> latentOut() {
    return latentOut;
  }

  /** {@return what adapters may target as a whole, in the order of declaration} */
  public List<FusedParameter> fusedParameters() {
    return fusedParameters;
  }

  /**
   * {@return what a projection of one expert is called in adapter keys: name to one of {@code
   * gate}, {@code up}, {@code down}}
   */
  public Map<String, String> projectionNames() {
    return projectionNames;
  }

  /** {@return how config.json is read} */
  public Rules rules() {
    return rules;
  }

  @Override
  public String toString() {
    return "CheckpointLayout[" + modelType + ", " + blocks + "]";
  }

  /**
   * Starts a description.
   *
   * @param modelType the {@code model_type} in config.json
   * @return a builder
   */
  public static Builder builder(String modelType) {
    return new Builder(modelType);
  }

  /** {@return a builder that starts from this layout, under another {@code model_type}} */
  Builder toBuilder(String otherModelType) {
    Builder b = new Builder(otherModelType);
    b.blocks.addAll(blocks);
    b.forms.addAll(forms);
    b.routerWeights.addAll(routerWeights);
    b.routerBiases.addAll(routerBiases);
    b.correctionBiases.addAll(correctionBiases);
    b.sharedExperts.addAll(sharedExperts);
    b.sharedExpertGate = sharedExpertGate.orElse(null);
    b.latentIn = latentIn.orElse(null);
    b.latentOut = latentOut.orElse(null);
    b.fusedParameters.addAll(fusedParameters);
    b.projectionNames.putAll(projectionNames);
    b.rules = rules;
    return b;
  }

  /** Collects a layout; not thread-safe. */
  public static final class Builder {
    private final String modelType;
    private final List<BlockPath> blocks = new ArrayList<>();
    private final List<ExpertForm> forms = new ArrayList<>();
    private final List<String> routerWeights = new ArrayList<>();
    private final List<String> routerBiases = new ArrayList<>();
    private final List<String> correctionBiases = new ArrayList<>();
    private final List<String> sharedExperts = new ArrayList<>();
    private final List<FusedParameter> fusedParameters = new ArrayList<>();
    private final Map<String, String> projectionNames = new LinkedHashMap<>();
    private @Nullable String sharedExpertGate;
    private @Nullable String latentIn;
    private @Nullable String latentOut;
    private @Nullable Rules rules;

    private Builder(String modelType) {
      this.modelType = Objects.requireNonNull(modelType, "modelType");
    }

    /**
     * Adds a place where blocks stand.
     *
     * @param templates like {@code layers.{L}.mlp}
     * @return this
     */
    public Builder block(String... templates) {
      for (String template : templates) {
        blocks.add(new BlockPath(template));
      }
      return this;
    }

    /**
     * Adds a form with one tensor per expert and projection, gated.
     *
     * @param gate module of one expert's gate, like {@code experts.{E}.gate_proj}; its tensor is
     *     that name and {@code .weight}
     * @param up module of its up projection
     * @param down module of its down projection
     * @return this
     */
    public Builder perExpert(String gate, String up, String down) {
      name(gate, "gate");
      forms.add(
          new ExpertForm.PerExpert(
              Optional.of(gate + ".weight"), up + ".weight", down + ".weight"));
      name(up, "up");
      name(down, "down");
      return this;
    }

    /**
     * Adds a form with one tensor per expert and projection, without gate.
     *
     * @param up module of one expert's up projection, like {@code experts.{E}.up_proj}
     * @param down module of its down projection
     * @return this
     */
    public Builder perExpert(String up, String down) {
      forms.add(new ExpertForm.PerExpert(Optional.empty(), up + ".weight", down + ".weight"));
      name(up, "up");
      name(down, "down");
      return this;
    }

    private void name(String module, String projection) {
      projectionNames.put(module.substring(module.lastIndexOf('.') + 1), projection);
    }

    /**
     * Adds a form with all experts stacked, without biases.
     *
     * @param w13 tensor of gate and up, like {@code experts.gate_up_proj}
     * @param w2 tensor of down
     * @param orientation how both are stored
     * @param gateUp how gate and up share the {@code 2I}
     * @return this
     */
    public Builder stacked(String w13, String w2, Orientation orientation, GateUpLayout gateUp) {
      forms.add(
          new ExpertForm.Stacked(w13, w2, Optional.empty(), Optional.empty(), orientation, gateUp));
      return this;
    }

    /**
     * Adds any form.
     *
     * @param form the form
     * @return this
     */
    public Builder form(ExpertForm form) {
      forms.add(form);
      return this;
    }

    /**
     * Names the router's weight.
     *
     * @param weights tensor names {@code [E, H]}, any of which may occur
     * @return this
     */
    public Builder router(String... weights) {
      routerWeights.addAll(List.of(weights));
      return this;
    }

    /**
     * Names the router's bias.
     *
     * @param bias tensor name {@code [E]}
     * @return this
     */
    public Builder routerBias(String bias) {
      routerBiases.add(bias);
      return this;
    }

    /**
     * Names the bias that counts for the choice only.
     *
     * @param bias tensor name {@code [E]}
     * @return this
     */
    public Builder correctionBias(String bias) {
      correctionBiases.add(bias);
      return this;
    }

    /**
     * Names the shared expert: a module with {@code gate_proj}, {@code up_proj}, {@code down_proj}.
     *
     * @param modules module names, any of which may occur
     * @return this
     */
    public Builder sharedExpert(String... modules) {
      sharedExperts.addAll(List.of(modules));
      return this;
    }

    /**
     * Names the gate on the shared expert's output.
     *
     * @param module its tensor is that name and {@code .weight}, {@code [1, H]}
     * @return this
     */
    public Builder sharedExpertGate(String module) {
      sharedExpertGate = module;
      return this;
    }

    /**
     * Names the projections around latent experts.
     *
     * @param in module in front, {@code [D, H]}
     * @param out module behind, {@code [H, D]}
     * @return this
     */
    public Builder latent(String in, String out) {
      latentIn = in;
      latentOut = out;
      return this;
    }

    /**
     * Adds a parameter that adapters may target as a whole, after those declared before it.
     *
     * @param parameter the parameter
     * @return this
     */
    public Builder fusedParameter(FusedParameter parameter) {
      fusedParameters.add(parameter);
      return this;
    }

    /**
     * Sets how config.json is read.
     *
     * @param rules the reader
     * @return this
     */
    public Builder rules(Rules rules) {
      this.rules = rules;
      return this;
    }

    /**
     * {@return the layout}
     *
     * @throws IllegalStateException if it has no block, no form, or no rules
     */
    public CheckpointLayout build() {
      if (blocks.isEmpty() || forms.isEmpty() || rules == null) {
        throw new IllegalStateException(
            "layout '" + modelType + "' needs a block, a form of its experts, and rules");
      }
      return new CheckpointLayout(this);
    }
  }
}
