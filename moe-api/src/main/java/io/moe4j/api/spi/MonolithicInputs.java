package io.moe4j.api.spi;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * One call of monolithic experts. All tensors on the stream's device, contiguous.
 *
 * @param hidden {@code [T, H]}; F32, BF16 or F16
 * @param routerLogits {@code [T, E]}; F32 or BF16
 * @param correctionBias F32 {@code [E]}, or null where the routing has none
 * @param output {@code [T, H]}, overwritten; F32, BF16 or F16; may not overlap {@code hidden}
 * @since 0.2.0
 */
public record MonolithicInputs(
    Tensor hidden, Tensor routerLogits, @Nullable Tensor correctionBias, Tensor output) {
  /**
   * Checks the components.
   *
   * @param hidden what the experts read
   * @param routerLogits what they route by
   * @param correctionBias added to scores for the choice only
   * @param output what they write
   */
  public MonolithicInputs {
    Objects.requireNonNull(hidden, "hidden");
    Objects.requireNonNull(routerLogits, "routerLogits");
    Objects.requireNonNull(output, "output");
    if (hidden.dims() != 2 || !Arrays.equals(hidden.shape(), output.shape())) {
      throw new IllegalArgumentException(
          "hidden is " + hidden + " and output " + output + ", must both be [T, H]");
    }
    if (routerLogits.dims() != 2
        || routerLogits.size(0) != hidden.size(0)
        || (routerLogits.dtype() != DType.F32 && routerLogits.dtype() != DType.BF16)) {
      throw new IllegalArgumentException(
          "routerLogits is " + routerLogits + ", must be F32 or BF16 [" + hidden.size(0) + ", E]");
    }
    if (correctionBias != null
        && (correctionBias.dtype() != DType.F32
            || correctionBias.dims() != 1
            || correctionBias.size(0) != routerLogits.size(1))) {
      throw new IllegalArgumentException(
          "correctionBias is " + correctionBias + ", must be F32 [" + routerLogits.size(1) + "]");
    }
  }
}
