package io.moe4j.cuda.experts;

import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.ops.AdaptersInUse;
import io.moe4j.cuda.ops.PairBatch;
import io.moe4j.cuda.ops.PeerLink;
import org.jspecify.annotations.Nullable;

/**
 * What the launches of one forward share.
 *
 * @param tokensHere for a choice of plans, see {@link PairBatch#tokensHere}
 * @param adapters in use; none where deltas are left to a punica wrapper
 * @param composed whether {@link GroupedProducts.Forward#plain} will run, not {@link
 *     GroupedProducts.Forward#run}
 * @param at where the parts of the scratch lie
 * @param base address of the scratch
 * @param batch the pairs
 * @param hidden address of the experts' input, in the weights' dtype, 16-byte aligned
 * @param output what is written
 * @param batched whether output rows without a pair are left alone
 * @param link of the exchange that the sums over k may be left to; null = none
 * @since 0.2.0
 */
public record GroupedForward(
    int tokensHere,
    AdaptersInUse adapters,
    boolean composed,
    ForwardLayout at,
    long base,
    PairBatch batch,
    long hidden,
    Tensor output,
    boolean batched,
    @Nullable PeerLink link) {
  /**
   * {@return the address of a part of the scratch}
   *
   * @param offset one of {@link #at}
   */
  public long address(long offset) {
    return base + offset;
  }
}
