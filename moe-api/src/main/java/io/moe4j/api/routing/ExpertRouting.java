package io.moe4j.api.routing;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Which expert each token goes to, and with what weight.
 *
 * @param topkIds int32 {@code [T, K]}, global expert ids, -1 = this pair does not exist
 * @param topkWeights F32 {@code [T, K]}
 * @param expertMap int32 {@code [E]} global to local, -1 = not on this rank; null = ids are local
 *     already
 * @since 0.1.0
 */
public record ExpertRouting(Tensor topkIds, Tensor topkWeights, @Nullable Tensor expertMap) {
  /**
   * Checks the components.
   *
   * @param topkIds int32 {@code [T, K]}
   * @param topkWeights F32 {@code [T, K]}
   * @param expertMap int32 {@code [E]} or null
   */
  public ExpertRouting {
    Objects.requireNonNull(topkIds, "topkIds");
    Objects.requireNonNull(topkWeights, "topkWeights");
    if (topkIds.dims() != 2 || topkIds.dtype() != DType.I32) {
      throw new IllegalArgumentException("topkIds is " + topkIds + ", must be I32 [T, K]");
    }
    if (topkWeights.dtype() != DType.F32 || !Arrays.equals(topkWeights.shape(), topkIds.shape())) {
      throw new IllegalArgumentException(
          "topkWeights is " + topkWeights + ", must be F32 " + Arrays.toString(topkIds.shape()));
    }
    if (expertMap != null && (expertMap.dims() != 1 || expertMap.dtype() != DType.I32)) {
      throw new IllegalArgumentException("expertMap is " + expertMap + ", must be I32 [E]");
    }
  }
}
