package io.moe4j.api.lora;

/**
 * Identifies the slots of one layer, compared by identity. An adapter registry makes one for each
 * layer and hands it out with every {@link MoeLoraContext}.
 *
 * @since 0.2.0
 */
public final class SlotsKey {
  private final String description;

  /**
   * A key that equals only itself.
   *
   * @param description whose slots, for messages
   */
  public SlotsKey(String description) {
    this.description = description;
  }

  @Override
  public String toString() {
    return "SlotsKey[" + description + "]";
  }
}
