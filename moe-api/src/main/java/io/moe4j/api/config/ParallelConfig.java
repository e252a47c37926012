package io.moe4j.api.config;

/**
 * How the layer is spread over ranks (processes, or threads with devices of their own); {@link
 * #SINGLE} is the whole layer in one. Every rank brings its own tokens, which the layer's {@code
 * ExpertExchange} moves; or all ranks bring the same ones ({@link #replicated}), as behind
 * tensor-parallel attention, and only sums travel.
 *
 * <p>Rank numbers of a communicator are {@code epRank * tpSize + tpRank}.
 *
 * @param tpSize tensor-parallel ranks that split {@code I} of every expert; a config, its weights
 *     and its adapters have this rank's share, {@code I / tpSize}: rows of w13 and of its B,
 *     columns of w2 and of its A, the bias of w2 on the first rank only
 * @param tpRank this one
 * @param epSize expert-parallel ranks that split {@code E}
 * @param epRank this one
 * @param replicatedTokens whether every rank has all tokens: the same hidden states, router logits
 *     and adapter slots in the same order, and gets all results; false where each rank has its own
 * @since 0.1.0
 */
public record ParallelConfig(
    int tpSize, int tpRank, int epSize, int epRank, boolean replicatedTokens) {
  /** One process. */
  public static final ParallelConfig SINGLE = new ParallelConfig(1, 0, 1, 0);

  /**
   * Checks the components.
   *
   * @param tpSize at least 1
   * @param tpRank {@code 0..tpSize-1}
   * @param epSize at least 1
   * @param epRank {@code 0..epSize-1}
   * @param replicatedTokens nothing to replicate with one rank: false there
   */
  public ParallelConfig {
    require("tp", tpSize, tpRank);
    require("ep", epSize, epRank);
    replicatedTokens = replicatedTokens && (tpSize > 1 || epSize > 1);
  }

  /**
   * Ranks that bring tokens of their own.
   *
   * @param tpSize tensor-parallel ranks
   * @param tpRank this one
   * @param epSize expert-parallel ranks
   * @param epRank this one
   */
  public ParallelConfig(int tpSize, int tpRank, int epSize, int epRank) {
    this(tpSize, tpRank, epSize, epRank, false);
  }

  private static void require(String what, int size, int rank) {
    if (size < 1 || rank < 0 || rank >= size) {
      throw new IllegalArgumentException(
          what
              + "Rank is "
              + rank
              + " and "
              + what
              + "Size "
              + size
              + "; the size must be at least 1 and the rank 0..size-1");
    }
  }

  /**
   * Expert parallelism alone.
   *
   * @param epSize ranks that split {@code E}
   * @param epRank this one
   * @return the config
   */
  public static ParallelConfig expert(int epSize, int epRank) {
    return new ParallelConfig(1, 0, epSize, epRank);
  }

  /**
   * Tensor parallelism alone.
   *
   * @param tpSize ranks that split {@code I}
   * @param tpRank this one
   * @return the config
   */
  public static ParallelConfig tensor(int tpSize, int tpRank) {
    return new ParallelConfig(tpSize, tpRank, 1, 0);
  }

  /**
   * {@return the same ranks where each of them has all tokens}
   *
   * @since 0.2.0
   */
  public ParallelConfig replicated() {
    return new ParallelConfig(tpSize, tpRank, epSize, epRank, true);
  }

  /** {@return all ranks} */
  public int worldSize() {
    return Math.multiplyExact(tpSize, epSize);
  }

  /** {@return this rank among all of them} */
  public int rank() {
    return epRank * tpSize + tpRank;
  }

  /**
   * Like {@code ep 1/4}, or {@code ep 1/4, replicated tokens}.
   *
   * @return ranks and sizes
   */
  @Override
  public String toString() {
    if (worldSize() == 1) {
      return "one rank";
    }
    String tp = tpSize > 1 ? "tp " + tpRank + "/" + tpSize : "";
    String ep = epSize > 1 ? "ep " + epRank + "/" + epSize : "";
    String tokens = replicatedTokens ? ", replicated tokens" : "";
    return tp + (tp.isEmpty() || ep.isEmpty() ? "" : ", ") + ep + tokens;
  }
}
