package io.moe4j.api.weights;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * All weights of one MoE block. Views only; see the package.
 *
 * @param experts the routed experts on this rank
 * @param router the router; null if the caller always brings logits or topk ids
 * @param shared the shared expert, or null
 * @param latent the latent projections, or null
 */
public record MoeLayerWeights(
    ExpertWeights experts,
    @Nullable RouterWeights router,
    @Nullable SharedExpertWeights shared,
    @Nullable LatentWeights latent) {

  /**
   * @param experts the routed experts
   * @param router the router or null
   * @param shared the shared expert or null
   * @param latent the latent projections or null
   */
  public MoeLayerWeights {
    Objects.requireNonNull(experts, "experts");
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
      for (Weight w : x.projections()) {
        requireScheme(who, w, config);
      }
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

  private static void requireScheme(String who, Weight w, MoeConfig config) {
    if (!config.quantSchemes().contains(w.scheme())) {
      throw new IllegalArgumentException(
          who + w + " is " + w.scheme() + ", the config says " + config.quantSchemes());
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

  private static void requireShape(String name, Tensor t, long... shape) {
    if (!Arrays.equals(t.shape(), shape)) {
      throw new IllegalArgumentException(
          name + " is " + t + ", must have shape " + Arrays.toString(shape));
    }
  }
}
