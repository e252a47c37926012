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

  /**
   * The expert of one pair, for code that runs on the host.
   *
   * @param token {@code 0..T-1}
   * @param k {@code 0..K-1}
   * @param numLocalExperts experts on this rank
   * @return {@code 0..numLocalExperts-1}, or -1 for a pair that adds nothing here: id -1, an
   *     unknown id, or an expert of another rank
   */
  public int localExpert(int token, int k, int numLocalExperts) {
    long expert = (long) topkIds.get(token, k);
    if (expertMap != null && expert >= 0) {
      expert = expert < expertMap.size(0) ? (long) expertMap.get(expert) : -1;
    }
    return expert >= 0 && expert < numLocalExperts ? (int) expert : -1;
  }

  /** Is told of one pair. */
  public interface PairVisitor {
    /**
     * Is told of one pair.
     *
     * @param token {@code 0..T-1}
     * @param k {@code 0..K-1}
     * @param localExpert the pair's expert on this rank
     */
    void visit(int token, int k, int localExpert);
  }

  /**
   * Visits the pairs that this rank computes, in ascending order, for code that runs on the host.
   * Leaves out those that add nothing here: id -1, an unknown id, or an expert of another rank.
   *
   * @param numLocalExperts experts on this rank
   * @param visitor called once a pair
   */
  public void forEachLocalPair(int numLocalExperts, PairVisitor visitor) {
    for (int t = 0; t < topkIds.size(0); t++) {
      for (int k = 0; k < topkIds.size(1); k++) {
        int expert = localExpert(t, k, numLocalExperts);
        if (expert >= 0) {
          visitor.visit(t, k, expert);
        }
      }
    }
  }
}
