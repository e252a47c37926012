package io.moe4j.api.config;

import java.util.Objects;

/**
 * The dense MLP that every token passes besides its routed experts.
 *
 * @param intermediateSize its intermediate size (several shared experts are one MLP of the summed
 *     size)
 * @param activation its activation
 * @param sigmoidGate whether its output is multiplied by {@code sigmoid(x . gate^T)} (qwen2_moe)
 * @param combine how its output {@code s} and the routed experts' sum {@code r} become one
 * @since 0.1.0
 */
public record SharedExpertConfig(
    int intermediateSize, Activation activation, boolean sigmoidGate, Combine combine) {
  /** How the two outputs become one. Open: later versions may add some. */
  public enum Combine {
    /** {@code r + s}. */
    ADD,
    /** {@code (r + s) / 2} (cohere2_moe). */
    AVERAGE
  }

  /**
   * A shared expert whose output is added.
   *
   * @param intermediateSize at least 1
   * @param activation its activation
   * @param sigmoidGate gated output
   */
  public SharedExpertConfig(int intermediateSize, Activation activation, boolean sigmoidGate) {
    this(intermediateSize, activation, sigmoidGate, Combine.ADD);
  }

  /**
   * Checks the components.
   *
   * @param intermediateSize at least 1
   * @param activation its activation
   * @param sigmoidGate gated output
   * @param combine how it joins the routed experts
   */
  public SharedExpertConfig {
    Objects.requireNonNull(activation, "activation");
    Objects.requireNonNull(combine, "combine");
    if (intermediateSize < 1) {
      throw new IllegalArgumentException(
          "intermediateSize is " + intermediateSize + ", must be at least 1");
    }
  }
}
