package io.moe4j.api.config;

/**
 * Root-mean-square normalisation of a hidden state {@code x [H]}: {@code x / sqrt(mean(x^2) +
 * epsilon) * norm}, where {@code norm [H]} comes with the weights. In f32 whatever the dtypes.
 *
 * @param epsilon positive
 * @since 0.2.0
 */
public record RmsNorm(float epsilon) {
  /**
   * Checks the component.
   *
   * @param epsilon positive
   */
  public RmsNorm {
    if (!(epsilon > 0) || !Float.isFinite(epsilon)) {
      throw new IllegalArgumentException("epsilon is " + epsilon + ", must be positive");
    }
  }
}
