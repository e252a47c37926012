package io.moe4j.cuda.experts;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.cuda.ops.CombineKernel;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.PeerLink;

/**
 * The last launch of a forward: the weighted sum over k of the rows that w2 left. Safe for several
 * threads.
 *
 * @since 0.2.0
 */
public final class WeightedSum {
  private final CombineKernel combine;
  private final boolean weighted;
  private final int hidden;
  private final DType type;

  /**
   * Loads the kernels.
   *
   * @param kernels of the device
   * @param config of the layer
   */
  public WeightedSum(ExpertKernels kernels, MoeConfig config) {
    this.combine = new CombineKernel(kernels, config.weightDtype());
    this.weighted = !config.routerWeightOnInput();
    this.type = config.weightDtype();
    this.hidden = PaddedSizes.of(config).hidden();
  }

  /**
   * Enqueues it, or leaves it to the exchange.
   *
   * @param f the forward; its rows are at {@link ForwardLayout#y}
   * @param naive whether row r is pair r, unsorted
   */
  public void run(GroupedForward f, boolean naive) {
    long rows = f.address(f.at().y());
    long rowOfPair = f.address(f.at().lists().posOf());
    boolean apply = weighted && !f.batched();
    PeerLink link = f.link();
    if (link != null
        && !naive
        && !f.batched()
        && link.adds(new PeerLink.PairRows(rows, type, hidden, rowOfPair, apply))) {
      return;
    }
    combine.run(f.batch(), naive, rows, rowOfPair, apply, f.batched(), f.output(), hidden);
  }
}
