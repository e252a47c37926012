package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * What one member of the team needs for itself while it computes: arrays, because their bounds are
 * checked before a loop and not in it. Of one size whatever the layer, so all layers share a pool;
 * a forward takes one for each member and gives them back.
 */
final class MemberScratch {
  private static final ConcurrentLinkedQueue<MemberScratch[]> POOL = new ConcurrentLinkedQueue<>();

  /** Rows of a tile widened; also tokens on their way into a panel. */
  final float[] weights = new float[PanelPlan.TILE_ROWS * Kernels.PANEL_STRIDE];

  /** {@code [panel, row, token]}: a tile's sums. */
  final float[] sums = new float[PanelPlan.MAX_GROUP * PanelPlan.SUMS];

  /** A block to be transposed, of at most 64 lanes and rows. */
  final float[] turned = new float[64 * 64];

  /** What dot products work in. */
  final float[] dots = new float[Math.max(TypedKernels.DOT_SCRATCH, Kernels.ROW_SCRATCH)];

  /** Where the vectors of a dot product begin, or the results of an expand. */
  final long[] at = new long[Math.max(TypedKernels.MAX_TOKENS, TokenPlan.SEGMENT_TOKENS)];

  private MemberScratch() {}

  /** {@return one for each of at least so many members} */
  static MemberScratch[] take(int members) {
    MemberScratch[] s = POOL.poll();
    if (s == null || s.length < members) {
      s = new MemberScratch[members];
      for (int i = 0; i < members; i++) {
        s[i] = new MemberScratch();
      }
    }
    return s;
  }

  static void give(MemberScratch[] scratch) {
    POOL.add(scratch);
  }
}
