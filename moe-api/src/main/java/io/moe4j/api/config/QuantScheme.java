package io.moe4j.api.config;

import java.util.Objects;

/**
 * How weights are quantised.
 *
 * @param name lower-case id, {@code none} for plain floats
 * @param bits bits per weight, the dtype's own for {@code none}: 0
 * @param groupSize weights along the input dimension that share a scale; 0 = none, -1 = a whole row
 * @since 0.1.0
 */
public record QuantScheme(String name, int bits, int groupSize) {
  /** Plain floating-point weights. */
  public static final QuantScheme NONE = new QuantScheme("none", 0, 0);

  /**
   * 4-bit floats with an E8M0 scale for 32 weights, as gpt-oss is published; weights are given as
   * {@link io.moe4j.api.weights.ExpertWeights.Scales} says.
   */
  public static final QuantScheme MXFP4 = new QuantScheme("mxfp4", 4, 32);

  /**
   * Checks the components.
   *
   * @param name lower-case id
   * @param bits not negative
   * @param groupSize at least -1
   */
  public QuantScheme {
    Objects.requireNonNull(name, "name");
    if (bits < 0 || groupSize < -1) {
      throw new IllegalArgumentException(
          "bits " + bits + " or groupSize " + groupSize + " is out of range");
    }
  }

  /** {@return whether weights are plain floats} */
  public boolean isNone() {
    return equals(NONE);
  }

  @Override
  public String toString() {
    return isNone() ? name : name + "(" + bits + " bits, group " + groupSize + ")";
  }
}
