package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;

/**
 * The sizes the kernels run with. Rows are whole numbers of 16-byte vectors; where a layer's are
 * not, weights, factors and tokens are padded with zeros, which every activation maps to zero or
 * which meet a zero of the next matrix.
 *
 * @param hidden width of the experts' input and output, at least the layer's
 * @param intermediate at least the layer's {@code I}
 * @since 0.2.0
 */
public record PaddedSizes(int hidden, int intermediate) {
  /** Elements of 16 bits in a vector. */
  public static final int VECTOR = 8;

  /**
   * {@return the sizes of a layer}
   *
   * @param config of the layer
   */
  public static PaddedSizes of(MoeConfig config) {
    return new PaddedSizes(up(config.expertHiddenSize()), up(config.intermediateSize()));
  }

  /**
   * {@return whether a layer's own sizes are whole numbers of vectors}
   *
   * @param config of the layer
   */
  public static boolean isExact(MoeConfig config) {
    return of(config).equals(new PaddedSizes(config.expertHiddenSize(), config.intermediateSize()));
  }

  private static int up(int size) {
    return Math.multiplyExact(Math.ceilDiv(size, VECTOR), VECTOR);
  }
}
