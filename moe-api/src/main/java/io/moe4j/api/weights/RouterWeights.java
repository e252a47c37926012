package io.moe4j.api.weights;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * The router. {@code N} is the number of things that can be chosen: the experts, and the zero
 * experts behind them where the layer has some.
 *
 * @param weight {@code [N, H]}
 * @param bias {@code [N]} added to the logits, or null
 * @param correctionBias {@code [N]} added to the scores for the choice only, or null
 * @param norm {@code [H]}, what the normalised input is multiplied by, or null where the router
 *     reads its input as it is ({@link io.moe4j.api.config.RoutingConfig#inputNorm()})
 * @param expertScale {@code [N]}, factor on the weight of a chosen expert, or null
 * @param tokenExperts I32 {@code [V, K]}: the experts of each token id, or null where the scores
 *     choose
 * @since 0.1.0
 */
public record RouterWeights(
    Tensor weight,
    @Nullable Tensor bias,
    @Nullable Tensor correctionBias,
    @Nullable Tensor norm,
    @Nullable Tensor expertScale,
    @Nullable Tensor tokenExperts) {
  /**
   * A router that reads its input as it is and chooses by its scores.
   *
   * @param weight {@code [N, H]}
   * @param bias {@code [N]} or null
   * @param correctionBias {@code [N]} or null
   */
  public RouterWeights(Tensor weight, @Nullable Tensor bias, @Nullable Tensor correctionBias) {
    this(weight, bias, correctionBias, null, null, null);
  }

  /** Checks that the shapes fit each other. */
  public RouterWeights {
    Objects.requireNonNull(weight, "weight");
    if (weight.dims() != 2) {
      throw new IllegalArgumentException("router weight is " + weight + ", must be [N, H]");
    }
    requireShape("bias", bias, weight, weight.size(0));
    requireShape("correctionBias", correctionBias, weight, weight.size(0));
    requireShape("norm", norm, weight, weight.size(1));
    requireShape("expertScale", expertScale, weight, weight.size(0));
    if (tokenExperts != null && (tokenExperts.dims() != 2 || tokenExperts.dtype() != DType.I32)) {
      throw new IllegalArgumentException(
          "router tokenExperts is " + tokenExperts + ", must be I32 [V, K]");
    }
  }

  private static void requireShape(String name, @Nullable Tensor t, Tensor weight, long size) {
    if (t != null && !Arrays.equals(t.shape(), new long[] {size})) {
      throw new IllegalArgumentException(
          "router "
              + name
              + " is "
              + t
              + ", must be ["
              + size
              + "] to fit the router weight "
              + weight);
    }
  }
}
