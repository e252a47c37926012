package io.moe4j.api.config;

/**
 * How the layer is spread over processes; {@link #SINGLE} is the whole layer in one.
 *
 * @param tpSize tensor-parallel ranks that split {@code I}
 * @param tpRank this one
 * @param epSize expert-parallel ranks that split {@code E}
 * @param epRank this one
 * @param dpSize data-parallel ranks
 * @since 0.1.0
 */
public record ParallelConfig(int tpSize, int tpRank, int epSize, int epRank, int dpSize) {
  /** One process. */
  public static final ParallelConfig SINGLE = new ParallelConfig(1, 0, 1, 0, 1);

  /**
   * Checks the components.
   *
   * @param tpSize at least 1
   * @param tpRank {@code 0..tpSize-1}
   * @param epSize at least 1
   * @param epRank {@code 0..epSize-1}
   * @param dpSize at least 1
   */
  public ParallelConfig {
    if (tpSize < 1
        || epSize < 1
        || dpSize < 1
        || tpRank < 0
        || tpRank >= tpSize
        || epRank < 0
        || epRank >= epSize) {
      throw new IllegalArgumentException(
          "tp "
              + tpRank
              + "/"
              + tpSize
              + ", ep "
              + epRank
              + "/"
              + epSize
              + ", dp size "
              + dpSize
              + ": sizes must be at least 1 and ranks below their size");
    }
  }
}
