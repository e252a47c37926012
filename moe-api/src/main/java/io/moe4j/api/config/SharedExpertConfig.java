package io.moe4j.api.config;

import java.util.Objects;

/**
 * The dense MLP that every token passes besides its routed experts.
 *
 * @param intermediateSize its intermediate size (several shared experts are one MLP of the summed
 *     size)
 * @param activation its activation
 * @param sigmoidGate whether its output is multiplied by {@code sigmoid(x . gate^T)} (qwen2_moe)
 * @since 0.1.0
 */
public record SharedExpertConfig(int intermediateSize, Activation activation, boolean sigmoidGate) {
  /**
   * Checks the components.
   *
   * @param intermediateSize at least 1
   * @param activation its activation
   * @param sigmoidGate gated output
   */
  public SharedExpertConfig {
    Objects.requireNonNull(activation, "activation");
    if (intermediateSize < 1) {
      throw new IllegalArgumentException(
          "intermediateSize is " + intermediateSize + ", must be at least 1");
    }
  }
}
