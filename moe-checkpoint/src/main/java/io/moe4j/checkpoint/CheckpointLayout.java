package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.checkpoint.ExpertForm.Orientation;
import java.nio.file.Path;
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
 *
 * <p>The same can be written as JSON, see {@link #load(Path)}; a file of the name {@value
 * MoeCheckpoint#LAYOUT_FILE} beside config.json is read by itself.
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
     * The shared expert's activation.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @param experts the routed experts' activation
     * @return that of the routed experts unless the config says otherwise
     */
    default Activation sharedActivation(ModelConfig config, int layer, Activation experts) {
      return experts;
    }

    /**
     * How the shared expert's output joins the routed experts'.
     *
     * @param config the language model's part of config.json
     * @param layer layer index
     * @return {@link Combine#ADD} unless the config says otherwise
     */
    default Combine sharedCombine(ModelConfig config, int layer) {
      return Combine.ADD;
    }

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
  private final List<SharedForm> sharedExperts;
  private final Optional<String> sharedExpertGate;
  private final List<String> configAt;
  private final List<BlockPath> outside;
  private final List<String> ignored;
  private final Orientation routerStored;
  private final int correctionBiasRow;
  private final boolean moreExpertsIgnored;
  private final boolean routerAdapters;
  private final List<String> tokenExperts;
  private final Optional<String> routerNorm;
  private final boolean routerNormOverRoot;
  private final Optional<String> expertScale;
  private final Optional<String> inputNorm;
  private final Optional<String> outputBias;
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
    this.configAt = List.copyOf(b.configAt);
    this.outside = List.copyOf(b.outside);
    this.ignored = List.copyOf(b.ignored);
    this.routerStored = b.routerStored;
    this.correctionBiasRow = b.correctionBiasRow;
    this.moreExpertsIgnored = b.moreExpertsIgnored;
    this.routerAdapters = b.routerAdapters;
    this.tokenExperts = List.copyOf(b.tokenExperts);
    this.routerNorm = Optional.ofNullable(b.routerNorm);
    this.routerNormOverRoot = b.routerNormOverRoot;
    this.expertScale = Optional.ofNullable(b.expertScale);
    this.inputNorm = Optional.ofNullable(b.inputNorm);
    this.outputBias = Optional.ofNullable(b.outputBias);
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

  /** {@return how the router's weight is stored: {@code [E, H]} or {@code [H, E]}} */
  public Orientation routerStored() {
    return routerStored;
  }

  /** {@return which row of a correction bias {@code [N, E]} is the language model's} */
  public int correctionBiasRow() {
    return correctionBiasRow;
  }

  /** {@return how the shared expert may be stored} */
  public List<SharedForm> sharedExperts() {
    return sharedExperts;
  }

  /**
   * {@return where in config.json the language model's part is, of a wrapper whose own type this
   * is}
   */
  public List<String> configAt() {
    return configAt;
  }

  /**
   * {@return where layers have modules that look like a part of the block and are none: a dense MLP
   * beside it, attention with experts of its own}
   */
  public List<BlockPath> outside() {
    return outside;
  }

  /** {@return whether the modelling code computes what an adapter adds to the router} */
  public boolean routerAdapters() {
    return routerAdapters;
  }

  /**
   * {@return what tensors of a block begin with that is none of the language model's, like {@code
   * vision_moe.}}
   */
  public List<String> ignored() {
    return ignored;
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

  /** {@return names of the table {@code [V, K]} that chooses experts by token id} */
  public List<String> tokenExperts() {
    return tokenExperts;
  }

  /** {@return the name of the norm {@code [H]} on the router's input} */
  public Optional<String> routerNorm() {
    return routerNorm;
  }

  /** {@return whether the router's norm is divided by the square root of {@code H}} */
  public boolean routerNormOverRoot() {
    return routerNormOverRoot;
  }

  /** {@return the name of the factors {@code [E]} on the experts' weights} */
  public Optional<String> expertScale() {
    return expertScale;
  }

  /** {@return the name of the norm {@code [H]} on the experts' input} */
  public Optional<String> inputNorm() {
    return inputNorm;
  }

  /** {@return the name of the bias {@code [H]} on the block's output} */
  public Optional<String> outputBias() {
    return outputBias;
  }

  /** {@return whether experts beyond the config's number are left out instead of refused} */
  public boolean moreExpertsIgnored() {
    return moreExpertsIgnored;
  }

  @Override
  public String toString() {
    return "CheckpointLayout[" + modelType + ", " + blocks + "]";
  }

  /**
   * Reads a description from a JSON file: one layout, or several under {@code layouts}. FAMILIES.md
   * ("Describe a family") lists the keys; the known families are written in the same form.
   *
   * @param file the file
   * @return the layouts
   * @throws io.moe4j.api.CheckpointException if the file cannot be read, or a key is missing,
   *     unknown or has a value that makes no sense; the message says where
   * @since 0.2.0
   */
  public static List<CheckpointLayout> load(Path file) {
    ObjectNode json = StrictJson.readObject(file, StrictJson.MAX_CONFIG_BYTES);
    return List.copyOf(LayoutJson.read(file.toString(), json, KnownLayouts.json()).values());
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

  /**
   * A builder that starts from this layout.
   *
   * @param otherModelType the {@code model_type} of the new one
   * @return a new builder
   * @since 0.2.0
   */
  public Builder toBuilder(String otherModelType) {
    Builder b = new Builder(otherModelType);
    b.blocks.addAll(blocks);
    b.forms.addAll(forms);
    b.routerWeights.addAll(routerWeights);
    b.routerBiases.addAll(routerBiases);
    b.correctionBiases.addAll(correctionBiases);
    b.sharedExperts.addAll(sharedExperts);
    b.sharedExpertGate = sharedExpertGate.orElse(null);
    b.configAt.addAll(configAt);
    b.outside.addAll(outside);
    b.ignored.addAll(ignored);
    b.routerStored = routerStored;
    b.correctionBiasRow = correctionBiasRow;
    b.moreExpertsIgnored = moreExpertsIgnored;
    b.routerAdapters = routerAdapters;
    b.tokenExperts.addAll(tokenExperts);
    b.routerNorm = routerNorm.orElse(null);
    b.routerNormOverRoot = routerNormOverRoot;
    b.expertScale = expertScale.orElse(null);
    b.inputNorm = inputNorm.orElse(null);
    b.outputBias = outputBias.orElse(null);
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
    private final List<SharedForm> sharedExperts = new ArrayList<>();
    private final List<String> configAt = new ArrayList<>();
    private final List<BlockPath> outside = new ArrayList<>();
    private final List<String> ignored = new ArrayList<>();
    private final List<FusedParameter> fusedParameters = new ArrayList<>();
    private final Map<String, String> projectionNames = new LinkedHashMap<>();
    private Orientation routerStored = Orientation.OUT_IN;
    private int correctionBiasRow;
    private boolean moreExpertsIgnored;
    private boolean routerAdapters = true;
    private final List<String> tokenExperts = new ArrayList<>();
    private @Nullable String routerNorm;
    private boolean routerNormOverRoot;
    private @Nullable String expertScale;
    private @Nullable String inputNorm;
    private @Nullable String outputBias;
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
     * Adds modules that belong to the block but stand beside it: the last part of the name counts
     * as the module's name in the block.
     *
     * @param templates like {@code layers.{L}.shared_mlp}
     * @return this
     */
    public Builder beside(String... templates) {
      for (String template : templates) {
        blocks.add(BlockPath.beside(template));
      }
      return this;
    }

    /**
     * Names modules of a layer that look like a part of the block and are none, so that an
     * adapter's factors on them count as outside.
     *
     * @param templates like {@code layers.{L}.mlp}
     * @return this
     */
    public Builder outside(String... templates) {
      for (String template : templates) {
        outside.add(new BlockPath(template));
      }
      return this;
    }

    /**
     * Says that the modelling code multiplies with the router's weight past what PEFT wraps, so
     * that factors on it have no effect, or the reverse.
     *
     * @param computed true unless said otherwise
     * @return this
     */
    public Builder routerAdapters(boolean computed) {
      routerAdapters = computed;
      return this;
    }

    /**
     * Says where in config.json the language model's part is, if the type is a wrapper's.
     *
     * @param keys like {@code language_config}; the first that is there counts, none = the whole
     * @return this
     */
    public Builder configAt(String... keys) {
      configAt.addAll(List.of(keys));
      return this;
    }

    /**
     * Names tensors in a block that are none of the language model's.
     *
     * @param prefixes like {@code vision_moe.}
     * @return this
     */
    public Builder ignored(String... prefixes) {
      ignored.addAll(List.of(prefixes));
      return this;
    }

    /**
     * Says that experts with an index beyond the config's number are none of the language model's
     * (ernie4_5_vl_moe keeps its vision experts there).
     *
     * @param ignored whether such tensors are left out instead of refused
     * @return this
     */
    public Builder moreExpertsIgnored(boolean ignored) {
      this.moreExpertsIgnored = ignored;
      return this;
    }

    /**
     * Names the table that chooses experts by token id; a layer whose files have it routes by it.
     *
     * @param tables tensor names, integers {@code [V, K]}, any of which may occur
     * @return this
     */
    public Builder tokenExperts(String... tables) {
      tokenExperts.addAll(List.of(tables));
      return this;
    }

    /**
     * Names the norm on the router's input; the rules give the routing an {@code inputNorm}.
     *
     * @param norm tensor name {@code [H]}
     * @param overRoot whether it is divided by the square root of {@code H}
     * @return this
     */
    public Builder routerNorm(String norm, boolean overRoot) {
      routerNorm = norm;
      routerNormOverRoot = overRoot;
      return this;
    }

    /**
     * Names the factors on the experts' weights; the rules give the routing {@code expertScale}.
     *
     * @param scale tensor name {@code [E]}
     * @return this
     */
    public Builder expertScale(String scale) {
      expertScale = scale;
      return this;
    }

    /**
     * Names the norm on the experts' input; the rules give the block an {@code inputNorm}.
     *
     * @param norm tensor name {@code [H]}
     * @return this
     */
    public Builder inputNorm(String norm) {
      inputNorm = norm;
      return this;
    }

    /**
     * Names the bias on the block's output; it is added where the files have it.
     *
     * @param bias tensor name {@code [H]}
     * @return this
     */
    public Builder outputBias(String bias) {
      outputBias = bias;
      return this;
    }

    boolean hasRouterNorm() {
      return routerNorm != null;
    }

    boolean hasExpertScale() {
      return expertScale != null;
    }

    boolean hasInputNorm() {
      return inputNorm != null;
    }

    List<ExpertForm> forms() {
      return forms;
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
     * Says how the router's weight is stored.
     *
     * @param stored {@link Orientation#OUT_IN}, the default, for {@code [E, H]}; {@link
     *     Orientation#IN_OUT} for {@code [H, E]}; {@link Orientation#BY_SHAPE} for either
     * @return this
     */
    public Builder routerStored(Orientation stored) {
      this.routerStored = Objects.requireNonNull(stored, "stored");
      return this;
    }

    /**
     * Says which row counts where the correction bias has several, {@code [N, E]}.
     *
     * @param row from 0
     * @return this
     */
    public Builder correctionBiasRow(int row) {
      this.correctionBiasRow = row;
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
     * @param bias tensor name {@code [E]} or {@code [N, E]}
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
      for (String module : modules) {
        sharedExperts.add(SharedForm.ofModule(module));
      }
      return this;
    }

    /**
     * Adds any form of the shared expert.
     *
     * @param form its names
     * @return this
     */
    public Builder sharedExpert(SharedForm form) {
      sharedExperts.add(form);
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
