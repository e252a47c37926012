package io.moe4j.api.spi;

import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * This rank's tokens on their way to the experts.
 *
 * @param hidden {@code [T, H]}; F32, BF16 or F16; {@code T} may be 0 and differ between ranks
 * @param routing global ids and weights {@code [T, K]}, and this rank's expert map
 * @param tokenLoraMapping int32 {@code [T]}, or null without adapters; every rank of a group gives
 *     one, or none does
 * @param maxTokens the largest {@code T} of any rank in this call, or more; the same on every rank.
 *     An exchange that cannot ask the others, because it must not wait for the device, makes room
 *     for so many rows of each
 * @since 0.2.0
 */
public record ExchangeInputs(
    Tensor hidden, ExpertRouting routing, @Nullable Tensor tokenLoraMapping, int maxTokens) {
  /**
   * Checks the components.
   *
   * @param hidden this rank's rows
   * @param routing their choice
   * @param tokenLoraMapping their adapter slots
   * @param maxTokens at least {@code T}
   */
  public ExchangeInputs {
    Objects.requireNonNull(hidden, "hidden");
    Objects.requireNonNull(routing, "routing");
    if (hidden.dims() != 2 || routing.topkIds().size(0) != hidden.size(0)) {
      throw new IllegalArgumentException(
          "hidden is " + hidden + ", topkIds " + routing.topkIds() + "; must be [T, H] and [T, K]");
    }
    if (tokenLoraMapping != null
        && (tokenLoraMapping.dtype() != DType.I32
            || tokenLoraMapping.dims() != 1
            || tokenLoraMapping.size(0) != hidden.size(0))) {
      throw new IllegalArgumentException(
          "tokenLoraMapping is " + tokenLoraMapping + ", must be I32 [" + hidden.size(0) + "]");
    }
    if (maxTokens < hidden.size(0)) {
      throw new IllegalArgumentException(
          "maxTokens is " + maxTokens + ", less than the " + hidden.size(0) + " tokens of hidden");
    }
  }

  /**
   * Ranks that all have as many tokens as this one.
   *
   * @param hidden this rank's rows
   * @param routing their choice
   * @param tokenLoraMapping their adapter slots
   */
  public ExchangeInputs(Tensor hidden, ExpertRouting routing, @Nullable Tensor tokenLoraMapping) {
    this(hidden, routing, tokenLoraMapping, Math.toIntExact(hidden.size(0)));
  }
}
