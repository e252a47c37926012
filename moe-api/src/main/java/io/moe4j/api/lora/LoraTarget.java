package io.moe4j.api.lora;

/**
 * The linear maps of a MoE block that an adapter can change.
 *
 * @since 0.1.0
 */
public enum LoraTarget {
  /** Gate projection of the routed experts, {@code H -> I}. */
  GATE(true),
  /** Up projection of the routed experts, {@code H -> I}. */
  UP(true),
  /** Down projection of the routed experts, {@code I -> H}. */
  DOWN(true),
  /** Gate projection of the shared expert. */
  SHARED_GATE(false),
  /** Up projection of the shared expert. */
  SHARED_UP(false),
  /** Down projection of the shared expert. */
  SHARED_DOWN(false),
  /** The sigmoid gate on the shared expert's output, {@code H -> 1}. */
  SHARED_EXPERT_GATE(false),
  /** The projection in front of latent experts, {@code H -> D}. */
  LATENT_IN(false),
  /** The projection behind latent experts, {@code D -> H}. */
  LATENT_OUT(false);

  private final boolean routed;

  LoraTarget(boolean routed) {
    this.routed = routed;
  }

  /**
   * {@return whether factors have one entry per routed expert; otherwise their expert dimension is
   * 1}
   */
  public boolean isRouted() {
    return routed;
  }
}
