package io.moe4j.api.config;

import io.moe4j.api.tensor.DType;
import java.util.Objects;
import java.util.Optional;

/**
 * One MoE layer: what an oracle selects a backend for, and what a backend is prepared with.
 *
 * @param hiddenSize {@code H}
 * @param intermediateSize {@code I} of one routed expert, on this rank
 * @param numExperts {@code E}, global
 * @param topK experts per token
 * @param activation between w13 and w2
 * @param routing from logits to topk ids and weights
 * @param inputDtype dtype of hidden states: F32, BF16 or F16
 * @param weightDtype dtype of the experts' weights: F32, BF16 or F16 (with quantisation: the dtype
 *     they dequantise to)
 * @param quantScheme how the experts' weights are quantised
 * @param expertBias whether w13 and w2 have biases
 * @param routerWeightOnInput whether the topk weight multiplies the expert's input instead of its
 *     output (llama4). Any {@code topK} is accepted. LoRA sees the weighted input too, as if it
 *     were merged into the weights.
 * @param latentSize {@code D}, if experts work between projections {@code [D, H]} and {@code [H,
 *     D]} (nemotron_h); 0 = no
 * @param sharedExpert the dense MLP beside the routed experts
 * @param expertMap which experts are here; empty = all
 * @param lora LoRA settings; empty = off, and a forward with adapters is refused
 * @param activationFormat what the experts take
 * @param parallel how the layer is spread
 * @param maxTokens the largest {@code T} of one forward: sizes workspaces
 * @param batchInvariant whether a token's result must not depend on the other tokens of its batch,
 *     bit for bit
 * @since 0.1.0
 */
public record MoeConfig(
    int hiddenSize,
    int intermediateSize,
    int numExperts,
    int topK,
    Activation activation,
    RoutingConfig routing,
    DType inputDtype,
    DType weightDtype,
    QuantScheme quantScheme,
    boolean expertBias,
    boolean routerWeightOnInput,
    int latentSize,
    Optional<SharedExpertConfig> sharedExpert,
    Optional<ExpertMap> expertMap,
    Optional<LoraConfig> lora,
    ActivationFormat activationFormat,
    ParallelConfig parallel,
    int maxTokens,
    boolean batchInvariant) {

  /** Checks sizes and that the parts fit each other; see the record for what each one means. */
  public MoeConfig {
    requireAtLeastOne("hiddenSize", hiddenSize);
    requireAtLeastOne("intermediateSize", intermediateSize);
    requireAtLeastOne("numExperts", numExperts);
    requireAtLeastOne("maxTokens", maxTokens);
    if (topK < 1 || topK > numExperts) {
      throw new IllegalArgumentException(
          "topK is " + topK + ", must be 1..numExperts = " + numExperts);
    }
    if (latentSize < 0) {
      throw new IllegalArgumentException("latentSize is " + latentSize + ", must not be negative");
    }
    Objects.requireNonNull(activation, "activation");
    Objects.requireNonNull(routing, "routing");
    Objects.requireNonNull(quantScheme, "quantScheme");
    Objects.requireNonNull(sharedExpert, "sharedExpert");
    Objects.requireNonNull(lora, "lora");
    Objects.requireNonNull(activationFormat, "activationFormat");
    Objects.requireNonNull(parallel, "parallel");
    requireFloat("inputDtype", inputDtype);
    requireFloat("weightDtype", weightDtype);
    if (numExperts % routing.numGroups() != 0) {
      throw new IllegalArgumentException(
          "numExperts "
              + numExperts
              + " is not divisible by routing.numGroups "
              + routing.numGroups());
    }
    if (routing.numGroups() > 1
        && routing.groupScore() == RoutingConfig.GroupScore.SUM_OF_TOP2
        && numExperts / routing.numGroups() < 2) {
      throw new IllegalArgumentException(
          "groups of "
              + numExperts / routing.numGroups()
              + " expert have no two best scores to sum");
    }
    if ((long) routing.topkGroups() * (numExperts / routing.numGroups()) < topK) {
      throw new IllegalArgumentException(
          "topK "
              + topK
              + " exceeds the experts that "
              + routing.topkGroups()
              + " of "
              + routing.numGroups()
              + " groups leave");
    }
    if (routing.scoring() == RoutingConfig.Scoring.SPARSE_MIXER && topK != 2) {
      throw new IllegalArgumentException("SPARSE_MIXER routing has top_k 2, not " + topK);
    }
    if (expertMap.isPresent() && expertMap.get().numGlobalExperts() != numExperts) {
      throw new IllegalArgumentException(
          "expertMap covers "
              + expertMap.get().numGlobalExperts()
              + " experts, numExperts is "
              + numExperts);
    }
  }

  private static void requireAtLeastOne(String name, int value) {
    if (value < 1) {
      throw new IllegalArgumentException(name + " is " + value + ", must be at least 1");
    }
  }

  private static void requireFloat(String name, DType dtype) {
    if (dtype != DType.F32 && dtype != DType.BF16 && dtype != DType.F16) {
      throw new IllegalArgumentException(name + " is " + dtype + ", must be F32, BF16 or F16");
    }
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
    b.quantScheme = quantScheme;
    b.expertBias = expertBias;
    b.routerWeightOnInput = routerWeightOnInput;
    b.latentSize = latentSize;
    b.sharedExpert = sharedExpert;
    b.expertMap = expertMap;
    b.lora = lora;
    b.activationFormat = activationFormat;
    b.parallel = parallel;
    b.maxTokens = maxTokens;
    b.batchInvariant = batchInvariant;
    return b;
  }

  /**
   * Sets one thing at a time; not thread-safe. Each setter is named after the component of {@link
   * MoeConfig} it sets.
   */
  public static final class Builder {
    private final int hiddenSize;
    private final int intermediateSize;
    private final int numExperts;
    private final int topK;
    private Activation activation = Activation.SILU;
    private RoutingConfig routing = RoutingConfig.SOFTMAX_RENORMALIZE;
    private DType inputDtype = DType.F32;
    private DType weightDtype = DType.BF16;
    private QuantScheme quantScheme = QuantScheme.NONE;
    private boolean expertBias;
    private boolean routerWeightOnInput;
    private int latentSize;
    private Optional<SharedExpertConfig> sharedExpert = Optional.empty();
    private Optional<ExpertMap> expertMap = Optional.empty();
    private Optional<LoraConfig> lora = Optional.empty();
    private ActivationFormat activationFormat = ActivationFormat.STANDARD;
    private ParallelConfig parallel = ParallelConfig.SINGLE;
    private int maxTokens = 4096;
    private boolean batchInvariant;

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
     * Sets quantScheme.
     *
     * @param quantScheme see {@link MoeConfig}
     * @return this
     */
    public Builder quantScheme(QuantScheme quantScheme) {
      this.quantScheme = quantScheme;
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
     * {@return the config}
     *
     * @throws IllegalArgumentException if a value is out of range or two of them do not fit
     */
    public MoeConfig build() {
      return new MoeConfig(
          hiddenSize,
          intermediateSize,
          numExperts,
          topK,
          activation,
          routing,
          inputDtype,
          weightDtype,
          quantScheme,
          expertBias,
          routerWeightOnInput,
          latentSize,
          sharedExpert,
          expertMap,
          lora,
          activationFormat,
          parallel,
          maxTokens,
          batchInvariant);
    }
  }
}
