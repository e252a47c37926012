package io.moe4j.api.config;

import io.moe4j.api.tensor.DType;
import java.util.Collection;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import org.jspecify.annotations.Nullable;

/**
 * One MoE layer: what an oracle selects a backend for, and what a backend is prepared with. A
 * value; equal layers are equal. Immutable, safe for threads.
 *
 * @since 0.1.0
 */
public final class MoeConfig {
  private final int hiddenSize;
  private final int intermediateSize;
  private final int numExperts;
  private final int topK;
  private final Activation activation;
  private final RoutingConfig routing;
  private final DType inputDtype;
  private final DType weightDtype;
  private final List<QuantScheme> quantSchemes;
  private final List<QuantScheme> w13Schemes;
  private final List<QuantScheme> w2Schemes;
  private final boolean quantizedActivations;
  private final boolean expertBias;
  private final boolean routerWeightOnInput;
  private final int latentSize;
  private final Optional<SharedExpertConfig> sharedExpert;
  private final int zeroExperts;
  private final Optional<RmsNorm> inputNorm;
  private final boolean outputBias;
  private final Optional<ExpertMap> expertMap;
  private final Optional<ExpertPlacement> placement;
  private final boolean placed;
  private final Optional<LoraConfig> lora;
  private final ActivationFormat activationFormat;
  private final ParallelConfig parallel;
  private final int maxTokens;
  private final boolean batchInvariant;
  private final List<BackendOptions> options;

  private MoeConfig(Builder b) {
    hiddenSize = b.hiddenSize;
    intermediateSize = b.intermediateSize;
    numExperts = b.numExperts;
    topK = b.topK;
    activation = b.activation;
    routing = b.routing;
    inputDtype = b.inputDtype;
    weightDtype = b.weightDtype;
    w13Schemes = List.copyOf(new LinkedHashSet<>(b.w13Schemes));
    w2Schemes = List.copyOf(new LinkedHashSet<>(b.w2Schemes));
    Set<QuantScheme> all = new LinkedHashSet<>(w13Schemes);
    all.addAll(w2Schemes);
    quantSchemes = List.copyOf(all);
    quantizedActivations = b.quantizedActivations;
    expertBias = b.expertBias;
    routerWeightOnInput = b.routerWeightOnInput;
    latentSize = b.latentSize;
    sharedExpert = b.sharedExpert;
    zeroExperts = b.zeroExperts;
    inputNorm = b.inputNorm;
    outputBias = b.outputBias;
    lora = b.lora;
    activationFormat = b.activationFormat;
    parallel = parallel(b);
    maxTokens = b.maxTokens;
    batchInvariant = b.batchInvariant;
    options = List.copyOf(b.options.values());
    MoeConfigChecks.require(this);
    RankExperts here =
        RankExperts.of(numExperts, parallel, b.expertMap.orElse(null), b.placement.orElse(null));
    expertMap = here.map();
    placement = here.placement();
    placed = b.placement.isPresent();
  }

  /** A map that was made for a rank says which one this is. */
  private static ParallelConfig parallel(Builder b) {
    Objects.requireNonNull(b.parallel, "parallel");
    Optional<ExpertMap.Rank> rank = b.expertMap.flatMap(ExpertMap::rank);
    return rank.isPresent() && b.parallel.equals(ParallelConfig.SINGLE)
        ? ParallelConfig.expert(rank.get().epSize(), rank.get().epRank())
        : b.parallel;
  }

  /** {@return {@code H}} */
  public int hiddenSize() {
    return hiddenSize;
  }

  /** {@return {@code I} of one routed expert, on this rank} */
  public int intermediateSize() {
    return intermediateSize;
  }

  /** {@return {@code E}, global} */
  public int numExperts() {
    return numExperts;
  }

  /** {@return experts per token} */
  public int topK() {
    return topK;
  }

  /** {@return what stands between w13 and w2} */
  public Activation activation() {
    return activation;
  }

  /** {@return from logits to topk ids and weights} */
  public RoutingConfig routing() {
    return routing;
  }

  /** {@return dtype of hidden states: F32, BF16 or F16} */
  public DType inputDtype() {
    return inputDtype;
  }

  /**
   * {@return dtype of plain expert weights: F32, BF16 or F16; of quantised ones, the dtype they
   * dequantise to}
   */
  public DType weightDtype() {
    return weightDtype;
  }

  /**
   * {@return every scheme that occurs among the experts' weights, in the order given; one of them
   * may be {@link QuantScheme#NONE} where some experts or projections are not quantised}
   */
  public List<QuantScheme> quantSchemes() {
    return quantSchemes;
  }

  /**
   * {@return every scheme that occurs among gate and up; all of {@link #quantSchemes} where it was
   * not said which are where}
   *
   * @since 0.2.0
   */
  public List<QuantScheme> w13Schemes() {
    return w13Schemes;
  }

  /**
   * {@return every scheme that occurs among the down projections; all of {@link #quantSchemes}
   * where it was not said which are where}
   *
   * @since 0.2.0
   */
  public List<QuantScheme> w2Schemes() {
    return w2Schemes;
  }

  /**
   * {@return whether activations are quantised as {@link QuantScheme#activations()} says; by
   * default they are not, whatever the checkpoint was tuned for. LoRA reads the unquantised
   * activation in either case}
   */
  public boolean quantizedActivations() {
    return quantizedActivations;
  }

  /** {@return whether w13 and w2 have biases} */
  public boolean expertBias() {
    return expertBias;
  }

  /**
   * {@return whether the topk weight multiplies the expert's input instead of its output (llama4).
   * Any {@code topK} is accepted. LoRA sees the weighted input too, as if it were merged into the
   * weights}
   */
  public boolean routerWeightOnInput() {
    return routerWeightOnInput;
  }

  /**
   * {@return {@code D}, if experts work between projections {@code [D, H]} and {@code [H, D]}
   * (nemotron_h); 0 = no}
   */
  public int latentSize() {
    return latentSize;
  }

  /** {@return the dense MLP beside the routed experts} */
  public Optional<SharedExpertConfig> sharedExpert() {
    return sharedExpert;
  }

  /**
   * {@return zero experts behind the real ones: ids {@code E..E+zeroExperts-1} can be chosen, and
   * such a pair adds the token's hidden state times its weight (longcat_flash). Under expert
   * parallelism rank 0 adds them}
   *
   * @since 0.2.0
   */
  public int zeroExperts() {
    return zeroExperts;
  }

  /**
   * {@return what can be chosen: experts and zero experts; the number of router logits}
   *
   * @since 0.2.0
   */
  public int numChoices() {
    return numExperts + zeroExperts;
  }

  /**
   * {@return how the hidden state that the experts read is normalised; router and shared expert
   * read it as it is (gemma4). Empty = not at all}
   *
   * @since 0.2.0
   */
  public Optional<RmsNorm> inputNorm() {
    return inputNorm;
  }

  /**
   * {@return whether a bias {@code [H]} is added to the block's output (jetmoe). Where the parts of
   * several ranks are summed, leave it out of all but one}
   *
   * @since 0.2.0
   */
  public boolean outputBias() {
    return outputBias;
  }

  /** {@return which experts are on this rank; empty = all of them} */
  public Optional<ExpertMap> expertMap() {
    return expertMap;
  }

  /**
   * {@return which experts every rank has, where that is known: it was given, or experts are
   * consecutive}
   *
   * @since 0.2.0
   */
  public Optional<ExpertPlacement> placement() {
    return placement;
  }

  /** {@return LoRA settings; empty = off, and a forward with adapters is refused} */
  public Optional<LoraConfig> lora() {
    return lora;
  }

  /** {@return what the experts take} */
  public ActivationFormat activationFormat() {
    return activationFormat;
  }

  /** {@return how the layer is spread over ranks} */
  public ParallelConfig parallel() {
    return parallel;
  }

  /** {@return the largest {@code T} of one forward: sizes workspaces} */
  public int maxTokens() {
    return maxTokens;
  }

  /**
   * {@return whether a token's result must not depend on the other tokens of its batch, bit for
   * bit}
   */
  public boolean batchInvariant() {
    return batchInvariant;
  }

  /** {@return settings of single backends} */
  public List<BackendOptions> options() {
    return options;
  }

  /**
   * {@return the settings of one type}
   *
   * @param type as the backend defines it
   * @param <T> that type
   */
  public <T extends BackendOptions> Optional<T> options(Class<T> type) {
    return options.stream().filter(type::isInstance).map(type::cast).findFirst();
  }

  /** {@return whether any expert weight is quantised} */
  public boolean isQuantized() {
    return !quantSchemes.equals(List.of(QuantScheme.NONE));
  }

  /**
   * The one scheme that a backend has to compute, where all weights agree: activations included if
   * {@link #quantizedActivations()}, else without them.
   *
   * @return empty where experts or projections differ
   */
  public Optional<QuantScheme> uniformScheme() {
    return one(quantSchemes);
  }

  /**
   * The same of w13 alone, for backends that compute each product by itself.
   *
   * @return empty where experts, or gate and up, differ
   * @since 0.2.0
   */
  public Optional<QuantScheme> uniformW13Scheme() {
    return one(w13Schemes);
  }

  /**
   * The same of w2 alone.
   *
   * @return empty where experts differ
   * @since 0.2.0
   */
  public Optional<QuantScheme> uniformW2Scheme() {
    return one(w2Schemes);
  }

  private Optional<QuantScheme> one(List<QuantScheme> schemes) {
    List<QuantScheme> computed =
        quantizedActivations
            ? schemes
            : schemes.stream().map(QuantScheme::weightOnly).distinct().toList();
    return computed.size() == 1 ? Optional.of(computed.getFirst()) : Optional.empty();
  }

  /** {@return the experts on this rank} */
  public int numLocalExperts() {
    return expertMap.map(ExpertMap::numLocalExperts).orElse(numExperts);
  }

  /**
   * {@return the width that experts read and write: the latent size where there is one, else the
   * hidden size}
   */
  public int expertHiddenSize() {
    return latentSize > 0 ? latentSize : hiddenSize;
  }

  /**
   * A builder with the four sizes every layer has; the rest starts at: SiLU, softmax with
   * renormalisation, F32 input, BF16 weights, nothing optional, STANDARD, one process, 4096 tokens.
   *
   * @param hiddenSize {@code H}
   * @param intermediateSize {@code I}
   * @param numExperts {@code E}
   * @param topK experts per token
   * @return a new builder
   */
  public static Builder builder(int hiddenSize, int intermediateSize, int numExperts, int topK) {
    return new Builder(hiddenSize, intermediateSize, numExperts, topK);
  }

  /** {@return a builder that starts from this config} */
  public Builder toBuilder() {
    Builder b = new Builder(hiddenSize, intermediateSize, numExperts, topK);
    b.activation = activation;
    b.routing = routing;
    b.inputDtype = inputDtype;
    b.weightDtype = weightDtype;
    b.w13Schemes = w13Schemes;
    b.w2Schemes = w2Schemes;
    b.quantizedActivations = quantizedActivations;
    b.expertBias = expertBias;
    b.routerWeightOnInput = routerWeightOnInput;
    b.latentSize = latentSize;
    b.sharedExpert = sharedExpert;
    b.zeroExperts = zeroExperts;
    b.inputNorm = inputNorm;
    b.outputBias = outputBias;
    // A map that only follows from the rank follows again from whatever rank comes next.
    b.expertMap = expertMap.filter(m -> !placed && !RankExperts.isImplied(m, numExperts, parallel));
    b.placement = placed ? placement : Optional.empty();
    b.lora = lora;
    b.activationFormat = activationFormat;
    b.parallel = parallel;
    b.maxTokens = maxTokens;
    b.batchInvariant = batchInvariant;
    options.forEach(b::options);
    return b;
  }

  /**
   * Sets one thing at a time; not thread-safe. Each setter is named after the component of {@link
   * MoeConfig} it sets.
   */
  public static final class Builder {
    private final int hiddenSize;
    private int intermediateSize;
    private final int numExperts;
    private final int topK;
    private Activation activation = Activation.SILU;
    private RoutingConfig routing = RoutingConfig.SOFTMAX_RENORMALIZE;
    private DType inputDtype = DType.F32;
    private DType weightDtype = DType.BF16;
    private Collection<QuantScheme> w13Schemes = List.of(QuantScheme.NONE);
    private Collection<QuantScheme> w2Schemes = List.of(QuantScheme.NONE);
    private boolean quantizedActivations;
    private boolean expertBias;
    private boolean routerWeightOnInput;
    private int latentSize;
    private Optional<SharedExpertConfig> sharedExpert = Optional.empty();
    private int zeroExperts;
    private Optional<RmsNorm> inputNorm = Optional.empty();
    private boolean outputBias;
    private Optional<ExpertMap> expertMap = Optional.empty();
    private Optional<ExpertPlacement> placement = Optional.empty();
    private Optional<LoraConfig> lora = Optional.empty();
    private ActivationFormat activationFormat = ActivationFormat.STANDARD;
    private ParallelConfig parallel = ParallelConfig.SINGLE;
    private int maxTokens = 4096;
    private boolean batchInvariant;
    private final Map<Class<?>, BackendOptions> options = new LinkedHashMap<>();

    private Builder(int hiddenSize, int intermediateSize, int numExperts, int topK) {
      this.hiddenSize = hiddenSize;
      this.intermediateSize = intermediateSize;
      this.numExperts = numExperts;
      this.topK = topK;
    }

    /**
     * Sets activation.
     *
     * @param activation see {@link MoeConfig}
     * @return this
     */
    public Builder activation(Activation activation) {
      this.activation = activation;
      return this;
    }

    /**
     * Sets routing.
     *
     * @param routing see {@link MoeConfig}
     * @return this
     */
    public Builder routing(RoutingConfig routing) {
      this.routing = routing;
      return this;
    }

    /**
     * Sets inputDtype.
     *
     * @param inputDtype see {@link MoeConfig}
     * @return this
     */
    public Builder inputDtype(DType inputDtype) {
      this.inputDtype = inputDtype;
      return this;
    }

    /**
     * Sets weightDtype.
     *
     * @param weightDtype see {@link MoeConfig}
     * @return this
     */
    public Builder weightDtype(DType weightDtype) {
      this.weightDtype = weightDtype;
      return this;
    }

    /**
     * Sets the one scheme of all experts' weights.
     *
     * @param quantScheme {@link QuantScheme#NONE} unless set
     * @return this
     */
    public Builder quantScheme(QuantScheme quantScheme) {
      return quantSchemes(List.of(quantScheme));
    }

    /**
     * Sets the schemes of a layer whose experts or projections differ, where any may be anywhere.
     *
     * @param quantSchemes not empty; repetitions are dropped
     * @return this
     */
    public Builder quantSchemes(Collection<QuantScheme> quantSchemes) {
      return quantSchemes(quantSchemes, quantSchemes);
    }

    /**
     * Sets the schemes of a layer whose experts or projections differ, and which are where: some
     * backends compute a layer whose w2 is stored otherwise than its w13.
     *
     * @param w13 of gate and up; not empty, repetitions are dropped
     * @param w2 of the down projections; likewise
     * @return this
     * @since 0.2.0
     */
    public Builder quantSchemes(Collection<QuantScheme> w13, Collection<QuantScheme> w2) {
      this.w13Schemes = List.copyOf(w13);
      this.w2Schemes = List.copyOf(w2);
      return this;
    }

    /**
     * Sets quantizedActivations.
     *
     * @param quantizedActivations see {@link MoeConfig}
     * @return this
     */
    public Builder quantizedActivations(boolean quantizedActivations) {
      this.quantizedActivations = quantizedActivations;
      return this;
    }

    /**
     * Sets expertBias.
     *
     * @param expertBias see {@link MoeConfig}
     * @return this
     */
    public Builder expertBias(boolean expertBias) {
      this.expertBias = expertBias;
      return this;
    }

    /**
     * Sets routerWeightOnInput.
     *
     * @param routerWeightOnInput see {@link MoeConfig}
     * @return this
     */
    public Builder routerWeightOnInput(boolean routerWeightOnInput) {
      this.routerWeightOnInput = routerWeightOnInput;
      return this;
    }

    /**
     * Sets latentSize.
     *
     * @param latentSize see {@link MoeConfig}
     * @return this
     */
    public Builder latentSize(int latentSize) {
      this.latentSize = latentSize;
      return this;
    }

    /**
     * Sets sharedExpert.
     *
     * @param sharedExpert see {@link MoeConfig}
     * @return this
     */
    public Builder sharedExpert(SharedExpertConfig sharedExpert) {
      this.sharedExpert = Optional.of(sharedExpert);
      return this;
    }

    /**
     * There is no shared expert.
     *
     * @return this
     */
    public Builder noSharedExpert() {
      this.sharedExpert = Optional.empty();
      return this;
    }

    /**
     * Sets intermediateSize, for a share of a layer.
     *
     * @param intermediateSize of one routed expert, on this rank
     * @return this
     * @since 0.2.0
     */
    public Builder intermediateSize(int intermediateSize) {
      this.intermediateSize = intermediateSize;
      return this;
    }

    /**
     * Sets expertMap.
     *
     * @param expertMap see {@link MoeConfig}
     * @return this
     */
    public Builder expertMap(ExpertMap expertMap) {
      this.expertMap = Optional.of(expertMap);
      return this;
    }

    /**
     * All experts are here, or consecutive ones with expert parallelism.
     *
     * @return this
     */
    public Builder noExpertMap() {
      this.expertMap = Optional.empty();
      this.placement = Optional.empty();
      return this;
    }

    /**
     * Which experts every expert-parallel rank has; this rank's map follows from it. Needed where
     * experts are on several ranks; an exchange that sends rows only to ranks whose experts they
     * chose needs to know it too.
     *
     * @param placement of {@code parallel.epSize()} ranks
     * @return this
     * @since 0.2.0
     */
    public Builder placement(ExpertPlacement placement) {
      this.placement = Optional.of(placement);
      this.expertMap = Optional.empty();
      return this;
    }

    /**
     * Sets lora.
     *
     * @param lora see {@link MoeConfig}
     * @return this
     */
    public Builder lora(LoraConfig lora) {
      this.lora = Optional.of(lora);
      return this;
    }

    /**
     * LoRA is off.
     *
     * @return this
     */
    public Builder noLora() {
      this.lora = Optional.empty();
      return this;
    }

    /**
     * Sets activationFormat.
     *
     * @param activationFormat see {@link MoeConfig}
     * @return this
     */
    public Builder activationFormat(ActivationFormat activationFormat) {
      this.activationFormat = activationFormat;
      return this;
    }

    /**
     * Sets parallel.
     *
     * @param parallel see {@link MoeConfig}
     * @return this
     */
    public Builder parallel(ParallelConfig parallel) {
      this.parallel = parallel;
      return this;
    }

    /**
     * Sets maxTokens.
     *
     * @param maxTokens see {@link MoeConfig}
     * @return this
     */
    public Builder maxTokens(int maxTokens) {
      this.maxTokens = maxTokens;
      return this;
    }

    /**
     * Sets batchInvariant.
     *
     * @param batchInvariant see {@link MoeConfig}
     * @return this
     */
    public Builder batchInvariant(boolean batchInvariant) {
      this.batchInvariant = batchInvariant;
      return this;
    }

    /**
     * Sets zeroExperts.
     *
     * @param zeroExperts see {@link MoeConfig}
     * @return this
     * @since 0.2.0
     */
    public Builder zeroExperts(int zeroExperts) {
      this.zeroExperts = zeroExperts;
      return this;
    }

    /**
     * Sets inputNorm.
     *
     * @param inputNorm see {@link MoeConfig}
     * @return this
     * @since 0.2.0
     */
    public Builder inputNorm(@Nullable RmsNorm inputNorm) {
      this.inputNorm = Optional.ofNullable(inputNorm);
      return this;
    }

    /**
     * Sets outputBias.
     *
     * @param outputBias see {@link MoeConfig}
     * @return this
     * @since 0.2.0
     */
    public Builder outputBias(boolean outputBias) {
      this.outputBias = outputBias;
      return this;
    }

    /**
     * Settings of one backend; they replace earlier ones of the same type.
     *
     * @param options as that backend defines them
     * @return this
     */
    public Builder options(BackendOptions options) {
      this.options.put(options.getClass(), options);
      return this;
    }

    /**
     * {@return the config}
     *
     * @throws IllegalArgumentException if a value is out of range or two of them do not fit
     */
    public MoeConfig build() {
      return new MoeConfig(this);
    }
  }

  private List<Object> values() {
    return List.of(
        hiddenSize,
        intermediateSize,
        numExperts,
        topK,
        activation,
        routing,
        inputDtype,
        weightDtype,
        w13Schemes,
        w2Schemes,
        quantizedActivations,
        expertBias,
        routerWeightOnInput,
        latentSize,
        sharedExpert,
        zeroExperts,
        inputNorm,
        outputBias,
        expertMap,
        placement,
        lora,
        activationFormat,
        parallel,
        maxTokens,
        batchInvariant,
        options);
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof MoeConfig c && c.values().equals(values());
  }

  @Override
  public int hashCode() {
    return values().hashCode();
  }

  @Override
  public String toString() {
    return "MoeConfig[E="
        + numExperts
        + " top_k="
        + topK
        + " H="
        + hiddenSize
        + " I="
        + intermediateSize
        + ", activation="
        + activation
        + ", routing="
        + routing
        + ", inputDtype="
        + inputDtype
        + ", weightDtype="
        + weightDtype
        + ", quantSchemes="
        + quantSchemes
        + (w13Schemes.equals(w2Schemes) ? "" : " (w13 " + w13Schemes + ", w2 " + w2Schemes + ")")
        + ", quantizedActivations="
        + quantizedActivations
        + ", expertBias="
        + expertBias
        + ", routerWeightOnInput="
        + routerWeightOnInput
        + ", latentSize="
        + latentSize
        + ", sharedExpert="
        + sharedExpert
        + (zeroExperts > 0 ? ", zeroExperts=" + zeroExperts : "")
        + inputNorm.map(n -> ", inputNorm=" + n).orElse("")
        + (outputBias ? ", outputBias" : "")
        + ", expertMap="
        + expertMap
        + (placed ? placement.map(p -> ", placement=" + p).orElse("") : "")
        + ", lora="
        + lora
        + ", activationFormat="
        + activationFormat
        + ", parallel="
        + parallel
        + ", maxTokens="
        + maxTokens
        + ", batchInvariant="
        + batchInvariant
        + "]";
  }
}
