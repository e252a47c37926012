package io.moe4j.cuda.ops;

import io.moe4j.api.spi.ExchangeLink;
import io.moe4j.api.tensor.DType;

/**
 * An exchange whose ranks write into each other's memory, as experts on CUDA see it. Used by the
 * thread that enqueues the forward.
 *
 * @since 0.2.0
 */
public interface PeerLink extends ExchangeLink {
  /**
   * What experts have computed, one row a pair.
   *
   * @param address of {@code [P, width]}, 16-byte aligned
   * @param dtype of the rows
   * @param width of a row, in elements
   * @param rowOfPair address of int32 {@code [R, K]}: the row of each pair, -1 = another rank's
   * @param weighted whether the router's weights are still to be applied
   */
  record PairRows(long address, DType dtype, long width, long rowOfPair, boolean weighted) {}

  /**
   * Offers rows whose weighted sum over k is still to be made.
   *
   * @param rows unchanged until the exchange has combined
   * @return whether the exchange adds them; if so, the output of the experts is not read, else they
   *     write it
   */
  boolean adds(PairRows rows);
}
