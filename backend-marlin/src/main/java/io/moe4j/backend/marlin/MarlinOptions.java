package io.moe4j.backend.marlin;

import io.moe4j.api.config.BackendOptions;
import io.moe4j.cuda.ops.LoraMode;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Settings of {@code marlin} and {@code batched-marlin} for one layer, given with {@code
 * MoeConfig.Builder.options}. Immutable; two with the same settings are equal.
 *
 * @since 0.2.0
 */
public final class MarlinOptions implements BackendOptions {
  /** LoRA fused. */
  public static final MarlinOptions DEFAULT = new MarlinOptions(LoraMode.FUSED);

  private final LoraMode lora;

  private MarlinOptions(LoraMode lora) {
    this.lora = Objects.requireNonNull(lora, "lora");
  }

  @Override
  public String backend() {
    return "marlin";
  }

  /** {@return who adds the deltas of adapters} */
  public LoraMode lora() {
    return lora;
  }

  /**
   * {@return the same with another LoRA mode}
   *
   * @param mode who adds the deltas of adapters
   */
  public MarlinOptions withLora(LoraMode mode) {
    return new MarlinOptions(mode);
  }

  @Override
  public boolean equals(@Nullable Object o) {
    return o instanceof MarlinOptions m && m.lora == lora;
  }

  @Override
  public int hashCode() {
    return lora.hashCode();
  }

  /**
   * Like {@code marlin(lora fused)}.
   *
   * @return the settings
   */
  @Override
  public String toString() {
    return "marlin(lora " + lora.text() + ")";
  }
}
