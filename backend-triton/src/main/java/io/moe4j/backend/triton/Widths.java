package io.moe4j.backend.triton;

import io.moe4j.api.config.MoeConfig;

/**
 * The sizes the kernels run with. Rows are whole numbers of 16-byte vectors; where a layer's are
 * not, weights, factors and tokens are padded with zeros, which every activation maps to zero or
 * which meet a zero of the next matrix.
 *
 * @param hidden width of the experts' input and output, at least the layer's
 * @param intermediate at least the layer's {@code I}
 */
record Widths(int hidden, int intermediate) {
  /** Elements of 16 bits in a vector. */
  static final int VECTOR = 8;

  static Widths of(MoeConfig config) {
    return new Widths(up(config.expertHiddenSize()), up(config.intermediateSize()));
  }

  private static int up(int size) {
    return Math.multiplyExact(Math.ceilDiv(size, VECTOR), VECTOR);
  }
}
