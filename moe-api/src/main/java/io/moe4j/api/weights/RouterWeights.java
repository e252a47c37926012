package io.moe4j.api.weights;

import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * The router.
 *
 * @param weight {@code [E, H]}
 * @param bias {@code [E]} added to the logits, or null
 * @param correctionBias {@code [E]} added to the scores for the choice only, or null
 * @since 0.1.0
 */
public record RouterWeights(Tensor weight, @Nullable Tensor bias, @Nullable Tensor correctionBias) {
  /**
   * Checks the components.
   *
   * @param weight {@code [E, H]}
   * @param bias {@code [E]} or null
   * @param correctionBias {@code [E]} or null
   */
  public RouterWeights {
    Objects.requireNonNull(weight, "weight");
    if (weight.dims() != 2) {
      throw new IllegalArgumentException("router weight is " + weight + ", must be [E, H]");
    }
    requireVector("bias", bias, weight);
    requireVector("correctionBias", correctionBias, weight);
  }

  private static void requireVector(String name, @Nullable Tensor t, Tensor weight) {
    if (t != null && (t.dims() != 1 || t.size(0) != weight.size(0))) {
      throw new IllegalArgumentException(
          "router "
              + name
              + " is "
              + t
              + ", must be ["
              + weight.size(0)
              + "] to fit the router weight "
              + weight);
    }
  }
}
