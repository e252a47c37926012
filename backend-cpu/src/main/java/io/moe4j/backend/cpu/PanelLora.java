package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * LoRA for tokens in panels. Shrunk tokens stand side by side like the panel's own ({@code [rank,
 * tokens]}); a tile adds B's rows times them to its sums before they leave its scratch. A vector
 * may hold tokens of several adapters: each adapter adds to its own lanes and leaves the others.
 */
final class PanelLora {
  /** Ranks that are widened at a time. */
  static final int RANKS = 64;

  /** Elements from one rank to the next in the widened piece of B. */
  static final int STRIDE = PanelTiles.TILE_ROWS + 16;

  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final int ROWS = Kernels.PANEL_ROWS;

  private final MlpForward f;
  private final PanelPlan plan;
  private final Kernels kernels;
  private final int lanes;
  private final int maxRank;

  PanelLora(MlpForward f, GroupedMlp mlp, PanelPlan plan) {
    this.f = f;
    this.plan = plan;
    kernels = mlp.kernels;
    lanes = kernels.lanes();
    maxRank = mlp.maxRank;
  }

  /** Where a panel's shrunk tokens stand: {@code [2 * maxRank, tokens]}. */
  private long shrunk(int panel) {
    return f.where().shrunkPanels() + 8L * plan.panelLane[panel] * maxRank;
  }

  /**
   * Copies shrunk tokens, as they came from the shrink, to their places in panels.
   *
   * @param from first sorted position
   * @param to behind the last
   * @param first of the ranks
   * @param ranks how many
   */
  void spread(int from, int to, int first, int ranks) {
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    for (int p = from; p < to; p++) {
      int panel = plan.panelOf[p];
      if (panel < 0) {
        continue;
      }
      long src = l.shrunk() + p * l.shrunkStride() + 4L * first;
      long step = 4L * plan.panelVectors[panel] * lanes;
      long dst = shrunk(panel) + first * step + 4L * (p - plan.panelStart[panel]);
      for (int r = 0; r < ranks; r++) {
        ws.set(F32, dst + r * step, ws.get(F32, src + 4L * r));
      }
    }
  }

  /**
   * Adds one adapter's part to a panel's sums.
   *
   * @param view its factors for the target
   * @param expert whose
   * @param row0 first row of B
   * @param rows how many
   * @param panel which
   * @param first of the panel's ranks
   * @param from first lane of the panel that has the adapter
   * @param to behind the last
   * @param c0 index in the member's sums of the row that {@code row0} adds to
   * @param jump rows of sums from one six rows of the target to the next six
   */
  void expand(
      LoraView view,
      int expert,
      int row0,
      int rows,
      int panel,
      int first,
      int from,
      int to,
      int c0,
      int jump,
      int member) {
    MemorySegment ws = f.workspace();
    MemberScratch scratch = f.scratch(member);
    int width = plan.panelVectors[panel] * lanes;
    for (int r0 = 0; r0 < view.rank(); r0 += RANKS) {
      int ranks = Math.min(RANKS, view.rank() - r0);
      view.widenB(expert, r0, ranks, row0, rows, scratch);
      long s = shrunk(panel) + 4L * (first + r0) * width;
      for (int v = from / lanes; v * lanes < to; v++) {
        for (int r = 0; r < rows; r += ROWS) {
          int c = c0 + r / 6 * jump * width + v * lanes;
          kernels.expand(
              scratch.loraB,
              r,
              STRIDE,
              ws,
              s + 4L * v * lanes,
              4L * width,
              ranks,
              scratch.sums,
              c,
              c + jump * width,
              width,
              Math.max(0, from - v * lanes),
              Math.min(lanes, to - v * lanes));
        }
      }
    }
  }
}
