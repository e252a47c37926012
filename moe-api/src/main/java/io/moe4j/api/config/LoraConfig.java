package io.moe4j.api.config;

/**
 * LoRA settings of a layer.
 *
 * @param maxLoras slots: distinct adapters that one batch may mix, at least 1
 * @param maxRank largest rank of any projection of any adapter, at least 1; a limit, not a size
 *     that memory is padded to
 * @since 0.1.0
 */
public record LoraConfig(int maxLoras, int maxRank) {
  /**
   * Checks the components.
   *
   * @param maxLoras at least 1
   * @param maxRank at least 1
   */
  public LoraConfig {
    if (maxLoras < 1 || maxRank < 1) {
      throw new IllegalArgumentException(
          "maxLoras is " + maxLoras + " and maxRank " + maxRank + ", both must be at least 1");
    }
  }
}
