package io.moe4j.api.weights;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Objects;
import java.util.OptionalInt;
import org.jspecify.annotations.Nullable;

/**
 * All weights of one MoE block. Views only; see the package.
 *
 * @param experts the routed experts on this rank
 * @param router the router; null if the caller always brings logits or topk ids
 * @param shared the shared expert, or null
 * @param latent the latent projections, or null
 * @param layerIndex which of a model's layers they are of, so that another layer's adapters are
 *     refused; empty where that is not known
 */
public record MoeLayerWeights(
    ExpertWeights experts,
    @Nullable RouterWeights router,
    @Nullable SharedExpertWeights shared,
    @Nullable LatentWeights latent,
    OptionalInt layerIndex) {

  /**
   * @param experts the routed experts
   * @param router the router or null
   * @param shared the shared expert or null
   * @param latent the latent projections or null
   * @param layerIndex the layer or empty
   */
  public MoeLayerWeights {
    Objects.requireNonNull(experts, "experts");
    Objects.requireNonNull(layerIndex, "layerIndex");
  }

  /**
   * Weights of a layer whose index is not known.
   *
   * @param experts the routed experts
   * @param router the router or null
   * @param shared the shared expert or null
   * @param latent the latent projections or null
   */
  public MoeLayerWeights(
      ExpertWeights experts,
      @Nullable RouterWeights router,
      @Nullable SharedExpertWeights shared,
      @Nullable LatentWeights latent) {
    this(experts, router, shared, latent, OptionalInt.empty());
  }

  /**
   * {@return the same weights as those of a layer of a model}
   *
   * @param index at least 0
   */
  public MoeLayerWeights withLayerIndex(int index) {
    if (index < 0) {
      throw new IllegalArgumentException("index is " + index + ", must not be negative");
    }
    return new MoeLayerWeights(experts, router, shared, latent, OptionalInt.of(index));
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
      requireDtype(who + "up", x.up(), config);
      requireDtype(who + "down", x.down(), config);
      requireScales(who, x, config);
      if (config.expertBias() != (x.upBias() != null && x.downBias() != null)) {
        throw new IllegalArgumentException(
            who
                + (config.expertBias() ? "lacks a bias that" : "has a bias that")
                + " the config "
                + (config.expertBias() ? "asks for" : "does not know of (expertBias is false)"));
      }
    }
    if (router != null) {
      requireShape("router weight", router.weight(), config.numExperts(), config.hiddenSize());
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
    requireShape(who + "up", x.up(), i, h);
    requireShape(who + "down", x.down(), h, i);
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

  private static void requireDtype(String name, Tensor t, MoeConfig config) {
    if (config.quantScheme().isNone() && t.dtype() != config.weightDtype()) {
      throw new IllegalArgumentException(
          name + " is " + t + ", the config says weightDtype " + config.weightDtype());
    }
  }

  /** Schemes that this library does not know answer for themselves in a backend's prepare. */
  private static void requireScales(String who, ExpertWeights.Expert x, MoeConfig config) {
    ExpertWeights.Scales scales = x.scales();
    if (config.quantScheme().isNone() && scales != null) {
      throw new IllegalArgumentException(who + "has scales, the config says quantScheme none");
    }
    if (!config.quantScheme().equals(QuantScheme.MXFP4)) {
      return;
    }
    if (scales == null) {
      throw new IllegalArgumentException(
          who + "lacks scales, the config says quantScheme " + config.quantScheme());
    }
    requireMxfp4(who + "gate", x.gate(), scales.gate());
    requireMxfp4(who + "up", x.up(), scales.up());
    requireMxfp4(who + "down", x.down(), scales.down());
  }

  private static void requireMxfp4(String name, @Nullable Tensor t, @Nullable Tensor scale) {
    if (t == null || scale == null) {
      return;
    }
    if (t.dtype() != DType.F4
        || t.stride(1) != 1
        || scale.dtype() != DType.F8_E8M0
        || scale.stride(1) != 1
        || scale.size(1) * QuantScheme.MXFP4.groupSize() != t.size(1)) {
      throw new IllegalArgumentException(
          name
              + " is "
              + t
              + " with scales "
              + scale
              + "; mxfp4 needs F4 with F8_E8M0 scales, one for 32 columns, both dense along a row");
    }
  }

  private static void requireShape(String name, Tensor t, long... shape) {
    if (!Arrays.equals(t.shape(), shape)) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must have shape " + Arrays.toString(shape));
    }
  }
}
