package io.moe4j.backend.triton.options;

import io.moe4j.api.config.BackendOptions;
import io.moe4j.cuda.ops.LoraMode;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Settings of {@code triton} and {@code batched-triton} for one layer, given with {@code
 * MoeConfig.Builder.options}. Immutable; two with the same settings are equal.
 *
 * @since 0.2.0
 */
public final class TritonOptions implements BackendOptions {
  /** LoRA fused; quantised weights are not unpacked. */
  public static final TritonOptions DEFAULT = new TritonOptions(LoraMode.FUSED, false);

  private final LoraMode lora;
  private final boolean unpack;

  private TritonOptions(LoraMode lora, boolean unpack) {
    this.lora = Objects.requireNonNull(lora, "lora");
    this.unpack = unpack;
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
    return new TritonOptions(mode, unpack);
  }

  /**
   * {@return whether quantised weights, which these kernels cannot read, are unpacked to {@code
   * config.weightDtype()} when a layer is prepared}
   */
  public boolean unpackWeights() {
    return unpack;
  }

  /**
   * {@return the same with weights unpacked or not} Unpacked, an int4 layer takes four times the
   * memory that its checkpoint takes, an FP8 layer twice, and elements are rounded once. MXFP4 is
   * computed as it is and never unpacked.
   *
   * @param unpackWeights whether to unpack what the kernels cannot read
   */
  public TritonOptions withUnpackedWeights(boolean unpackWeights) {
    return new TritonOptions(lora, unpackWeights);
  }

  @Override
  public boolean equals(@Nullable Object o) {
    return o instanceof TritonOptions t && t.lora == lora && t.unpack == unpack;
  }

  @Override
  public int hashCode() {
    return Objects.hash(lora, unpack);
  }

  /**
   * Like {@code triton(lora fused)}.
   *
   * @return the settings
   */
  @Override
  public String toString() {
    return "triton(lora " + lora.text() + (unpack ? ", weights unpacked)" : ")");
  }
}
