package io.moe4j.backend.triton.options;

import io.moe4j.api.config.BackendOptions;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Settings of {@code triton} and {@code batched-triton} for one layer, given with {@code
 * MoeConfig.Builder.options}. Immutable; two with the same settings are equal.
 *
 * @since 0.2.0
 */
public final class TritonOptions implements BackendOptions {
  /** LoRA fused. */
  public static final TritonOptions DEFAULT = new TritonOptions(LoraMode.FUSED);

  private final LoraMode lora;

  private TritonOptions(LoraMode lora) {
    this.lora = Objects.requireNonNull(lora, "lora");
  }

  @Override
  public String backend() {
    return "triton";
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
  public TritonOptions withLora(LoraMode mode) {
    return new TritonOptions(mode);
  }

  @Override
  public boolean equals(@Nullable Object o) {
    return o instanceof TritonOptions t && t.lora == lora;
  }

  @Override
  public int hashCode() {
    return lora.hashCode();
  }

  /**
   * Like {@code triton(lora fused)}.
   *
   * @return the settings
   */
  @Override
  public String toString() {
    return "triton(lora " + lora.text() + ")";
  }
}
