package io.moe4j.comm.nccl;

import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.ops.PeerLink;
import org.jspecify.annotations.Nullable;

/** What experts may leave to a sum over the ranks: the one over k, in BF16. */
final class SumLink implements PeerLink {
  private final long width;
  private @Nullable PairRows rows;

  /**
   * A link.
   *
   * @param width of a row that travels
   */
  SumLink(long width) {
    this.width = width;
  }

  @Override
  public boolean adds(PairRows offered) {
    if (offered.dtype() != DType.BF16 || offered.width() != width) {
      return false;
    }
    rows = offered;
    return true;
  }

  /** {@return what the experts have handed over; null: they have written their output} */
  @Nullable PairRows rows() {
    return rows;
  }
}
