package io.moe4j.api.weights;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;

/**
 * All weights of one MoE block. Views only; see the package. Immutable.
 *
 * @since 0.1.0
 */
public final class MoeLayerWeights {
  private final ExpertWeights experts;
  private final @Nullable RouterWeights router;
  private final @Nullable SharedExpertWeights shared;
  private final @Nullable LatentWeights latent;
  private final @Nullable Tensor inputNorm;
  private final @Nullable Tensor outputBias;
  private final OptionalInt layerIndex;

  /**
   * Weights of a layer of no known index.
   *
   * @param experts the routed experts on this rank
   * @param router the router; null if the caller always brings logits or topk ids
   * @param shared the shared expert, or null
   * @param latent the latent projections, or null
   */
  public MoeLayerWeights(
      ExpertWeights experts,
      @Nullable RouterWeights router,
      @Nullable SharedExpertWeights shared,
      @Nullable LatentWeights latent) {
    this(experts, router, shared, latent, null, null, OptionalInt.empty());
  }

  private MoeLayerWeights(
      ExpertWeights experts,
      @Nullable RouterWeights router,
      @Nullable SharedExpertWeights shared,
      @Nullable LatentWeights latent,
      @Nullable Tensor inputNorm,
      @Nullable Tensor outputBias,
      OptionalInt layerIndex) {
    this.experts = Objects.requireNonNull(experts, "experts");
    this.router = router;
    this.shared = shared;
    this.latent = latent;
    this.inputNorm = inputNorm;
    this.outputBias = outputBias;
    this.layerIndex = layerIndex;
  }

  /**
   * The same weights as those of one layer of a model: a layer built from them refuses adapters of
   * another one.
   *
   * @param index of the layer in its model, not negative
   * @return new weights over the same memory
   */
  public MoeLayerWeights withLayerIndex(int index) {
    if (index < 0) {
      throw new IllegalArgumentException("layer index is " + index + ", must not be negative");
    }
    return new MoeLayerWeights(
        experts, router, shared, latent, inputNorm, outputBias, OptionalInt.of(index));
  }

  /**
   * The same weights with a norm on the experts' input ({@link MoeConfig#inputNorm()}).
   *
   * @param norm {@code [H]}, what the normalised input is multiplied by
   * @return new weights over the same memory
   * @since 0.2.0
   */
  public MoeLayerWeights withInputNorm(Tensor norm) {
    return new MoeLayerWeights(experts, router, shared, latent, norm, outputBias, layerIndex);
  }

  /**
   * The same weights with a bias on the block's output ({@link MoeConfig#outputBias()}).
   *
   * @param bias {@code [H]}
   * @return new weights over the same memory
   * @since 0.2.0
   */
  public MoeLayerWeights withOutputBias(Tensor bias) {
    return new MoeLayerWeights(experts, router, shared, latent, inputNorm, bias, layerIndex);
  }

  /**
   * The same weights with other experts, such as those of one rank.
   *
   * @param others the routed experts
   * @return new weights over the same memory
   * @since 0.2.0
   */
  public MoeLayerWeights withExperts(ExpertWeights others) {
    return new MoeLayerWeights(others, router, shared, latent, inputNorm, outputBias, layerIndex);
  }

  /** {@return the routed experts on this rank} */
  public ExpertWeights experts() {
    return experts;
  }

  /** {@return the router; null if the caller always brings logits or topk ids} */
  public @Nullable RouterWeights router() {
    return router;
  }

  /** {@return the shared expert, or null} */
  public @Nullable SharedExpertWeights shared() {
    return shared;
  }

  /** {@return the latent projections, or null} */
  public @Nullable LatentWeights latent() {
    return latent;
  }

  /**
   * {@return {@code [H]}, what the experts' normalised input is multiplied by, or null where they
   * read their input as it is}
   *
   * @since 0.2.0
   */
  public @Nullable Tensor inputNorm() {
    return inputNorm;
  }

  /**
   * {@return {@code [H]}, added to the block's output, or null}
   *
   * @since 0.2.0
   */
  public @Nullable Tensor outputBias() {
    return outputBias;
  }

  /** {@return the index of the layer in its model, where it is known} */
  public OptionalInt layerIndex() {
    return layerIndex;
  }

  /**
   * Checks these weights against a config: the door that every layer passes before a backend sees
   * anything.
   *
   * @param config the layer's config
   * @throws IllegalArgumentException naming the first tensor that does not fit, its shape or dtype,
   *     and the expected one
   */
  public void requireFits(MoeConfig config) {
    long h = config.expertHiddenSize();
    long i = config.intermediateSize();
    if (experts.numExperts() != config.numLocalExperts()) {
      throw new IllegalArgumentException(
          "weights hold "
              + experts.numExperts()
              + " experts, the config has "
              + config.numLocalExperts()
              + " on this rank");
    }
    for (int e = 0; e < experts.numExperts(); e++) {
      ExpertWeights.Expert x = experts.expert(e);
      String who = "expert " + e + " ";
      requireMlp(who, x, config.activation().isGated(), i, h);
      if (x.gate() != null) {
        requireScheme(who, x.gate(), config, config.w13Schemes());
      }
      requireScheme(who, x.up(), config, config.w13Schemes());
      requireScheme(who, x.down(), config, config.w2Schemes());
      if (config.expertBias() != (x.upBias() != null && x.downBias() != null)) {
        throw new IllegalArgumentException(
            who
                + (config.expertBias() ? "lacks a bias that" : "has a bias that")
                + " the config "
                + (config.expertBias() ? "asks for" : "does not know of (expertBias is false)"));
      }
    }
    if (router != null) {
      requireShape("router weight", router.weight(), config.numChoices(), config.hiddenSize());
      requirePresent(
          "router norm", router.norm(), config.routing().inputNorm().isPresent(), "inputNorm");
      requirePresent(
          "router expertScale",
          router.expertScale(),
          config.routing().expertScale(),
          "expertScale");
      requirePresent(
          "router tokenExperts", router.tokenExperts(), config.routing().byTokenId(), "byTokenId");
      if (router.tokenExperts() != null && router.tokenExperts().size(1) != config.topK()) {
        throw new IllegalArgumentException(
            "router tokenExperts is "
                + router.tokenExperts()
                + ", must be [V, "
                + config.topK()
                + "]");
      }
      if (config.routing().correctionBias() != (router.correctionBias() != null)) {
        throw new IllegalArgumentException(
            "router correctionBias is "
                + router.correctionBias()
                + ", the config says "
                + config.routing().correctionBias());
      }
    }
    if (config.sharedExpert().isPresent() != (shared != null)) {
      throw new IllegalArgumentException(
          "the config "
              + (shared == null ? "has" : "lacks")
              + " a shared expert, the weights "
              + (shared == null ? "do not" : "hold one"));
    }
    if (shared != null) {
      var sharedConfig = config.sharedExpert().orElseThrow();
      requireMlp(
          "shared expert ",
          shared.mlp(),
          sharedConfig.activation().isGated(),
          sharedConfig.intermediateSize(),
          config.hiddenSize());
      if (sharedConfig.sigmoidGate() != (shared.sigmoidGate() != null)) {
        throw new IllegalArgumentException(
            "shared expert sigmoidGate is "
                + shared.sigmoidGate()
                + ", the config says "
                + sharedConfig.sigmoidGate());
      }
    }
    requirePresent("inputNorm", inputNorm, config.inputNorm().isPresent(), "inputNorm");
    if (inputNorm != null) {
      requireShape("inputNorm", inputNorm, config.hiddenSize());
    }
    requirePresent("outputBias", outputBias, config.outputBias(), "outputBias");
    if (outputBias != null) {
      requireShape("outputBias", outputBias, config.hiddenSize());
    }
    if ((config.latentSize() > 0) != (latent != null)) {
      throw new IllegalArgumentException(
          "latentSize is "
              + config.latentSize()
              + " but the weights "
              + (latent == null ? "have no" : "have")
              + " latent projections");
    }
    if (latent != null) {
      requireShape("latent in", latent.in(), config.latentSize(), config.hiddenSize());
    }
  }

  private static void requireMlp(
      String who, ExpertWeights.Expert x, boolean gated, long i, long h) {
    if (x.up().out() != i || x.up().in() != h) {
      throw new IllegalArgumentException(
          who + "up is " + x.up() + ", must have shape [" + i + ", " + h + "]");
    }
    if (gated != (x.gate() != null)) {
      throw new IllegalArgumentException(
          who
              + "gate is "
              + x.gate()
              + ", but the activation is "
              + (gated ? "" : "not ")
              + "gated");
    }
  }

  private static void requireScheme(
      String who, Weight w, MoeConfig config, List<QuantScheme> schemes) {
    if (!schemes.contains(w.scheme())) {
      throw new IllegalArgumentException(
          who + w + " is " + w.scheme() + ", the config says " + schemes);
    }
    if (w.isPlain() && w.plain().dtype() != config.weightDtype()) {
      throw new IllegalArgumentException(
          who
              + w.name()
              + " is "
              + w.plain()
              + ", the config says weightDtype "
              + config.weightDtype());
    }
  }

  private static void requirePresent(
      String name, @Nullable Tensor t, boolean expected, String field) {
    if (expected != (t != null)) {
      throw new IllegalArgumentException(
          name
              + " is "
              + t
              + ", but the config's "
              + field
              + " is "
              + (expected ? "set" : "not set"));
    }
  }

  private static void requireShape(String name, Tensor t, long... shape) {
    if (!Arrays.equals(t.shape(), shape)) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must have shape " + Arrays.toString(shape));
    }
  }
}
