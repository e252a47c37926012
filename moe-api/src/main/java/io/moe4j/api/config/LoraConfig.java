package io.moe4j.api.config;

/**
 * LoRA settings of a layer.
 *
 * @param maxLoras slots: distinct adapters that one batch may mix, at least 1
 * @param maxRank largest rank of any projection of any adapter, at least 1; a limit, not a size
 *     that memory is padded to
 * @param router whether adapters may change the router. Their delta is added to the logits that the
 *     layer computes, and with them may change who computes a token; logits or topk ids that the
 *     caller brings are taken as they are. If false, adapters with factors on the router are
 *     refused
 * @since 0.1.0
 */
public record LoraConfig(int maxLoras, int maxRank, boolean router) {
  /**
   * Checks the components.
   *
   * @param maxLoras at least 1
   * @param maxRank at least 1
   * @param router whether adapters may change the router
   */
  public LoraConfig {
    if (maxLoras < 1 || maxRank < 1) {
      throw new IllegalArgumentException(
          "maxLoras is " + maxLoras + " and maxRank " + maxRank + ", both must be at least 1");
    }
  }

  /**
   * Settings for adapters that leave the router alone.
   *
   * @param maxLoras at least 1
   * @param maxRank at least 1
   */
  public LoraConfig(int maxLoras, int maxRank) {
    this(maxLoras, maxRank, false);
  }

  /** {@return these settings for adapters that may change the router} */
  public LoraConfig withRouter() {
    return new LoraConfig(maxLoras, maxRank, true);
  }
}
