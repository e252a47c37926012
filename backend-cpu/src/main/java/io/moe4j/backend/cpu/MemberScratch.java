package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import java.util.concurrent.ConcurrentLinkedQueue;

/**
 * What one member of the team needs for itself while it computes panels: an array, because its
 * bounds are checked before a loop and not in it. Of one size whatever the layer, so all layers
 * share a pool; a forward takes one for each member and gives them back.
 */
final class MemberScratch {
  private static final ConcurrentLinkedQueue<MemberScratch[]> POOL = new ConcurrentLinkedQueue<>();

  /** Twelve rows of weights, widened. */
  final float[] weights = new float[Kernels.PANEL_ROWS * Kernels.PANEL_STRIDE];

  /** What was fetched ahead. Kept, or the compiler would drop the reads. */
  long seen;

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
