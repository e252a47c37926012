package io.moe4j.api.lora;

/**
 * Stands for the slots of one layer, compared by identity: whoever keeps adapters makes one a layer
 * and gives it out with every {@link MoeLoraContext}.
 *
 * @since 0.2.0
 */
public final class SlotsKey {
  private final String description;

  /**
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
