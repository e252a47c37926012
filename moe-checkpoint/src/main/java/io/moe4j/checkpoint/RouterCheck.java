package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.RouterWeights;
import org.jspecify.annotations.Nullable;

/**
 * Refuses a router that holds NaN or infinite values: which experts it chooses depends on how a
 * library sorts them, so that no result would be the right one.
 */
final class RouterCheck {
  private final String where;
  private final RouterWeights router;
  private volatile boolean done;

  RouterCheck(String where, RouterWeights router) {
    this.where = where;
    this.router = router;
  }

  /** What a check reads. */
  long bytes() {
    long bytes = 0;
    for (@Nullable Tensor t :
        new @Nullable Tensor[] {router.weight(), router.bias(), router.correctionBias()}) {
      bytes += t == null ? 0 : t.dtype().byteSize(t.elementCount());
    }
    return bytes;
  }

  /** Looks through the tensors, once. Threads may do so at the same time. */
  void requireFinite() {
    if (!done) {
      require("weight", router.weight());
      require("bias", router.bias());
      require("correction bias", router.correctionBias());
      done = true;
    }
  }

  private void require(String what, @Nullable Tensor t) {
    if (t != null && !FactorPacker.isFinite(t)) {
      throw new CheckpointException(
          where
              + ": the router's "
              + what
              + " "
              + t
              + " holds NaN or infinite values; the choice of experts would be arbitrary");
    }
  }
}
