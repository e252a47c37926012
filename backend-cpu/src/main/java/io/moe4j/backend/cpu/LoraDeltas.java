package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicIntegerArray;

/**
 * What adapters add to the products of one call of {@link GroupedMlp}. The tokens of one expert and
 * one adapter read A and B once, from front to back, and leave deltas that the tiles of the base
 * product add to their own: where an expert meets many adapters with few tokens each, a tile that
 * fetched its piece of every B would wait for memory each time.
 *
 * <p>For tokens in panels that is a tile for each panel, see {@link PanelDeltas}. The others have a
 * tile for each segment, or belong to the tile of the panel before them, and their deltas stand in
 * rows: those of gate where the activations will, those of up and down in rows of their own.
 */
final class LoraDeltas {
  private final ForwardState f;
  private final MlpWeights w;
  private final ThreadTeam team;
  private final int maxRank;
  private final TokenPlan plan;
  private final TypedKernels f32;
  private final LoraViews lora;
  private final PanelDeltas panels;

  /** By expert: tiles whose deltas are not there yet. */
  private final AtomicIntegerArray missing;

  /** By expert: where its tiles begin; one entry more than experts. */
  final int[] expertTiles;

  /** A segment, or {@code ~panel}. */
  private int[] tiles = new int[0];

  LoraDeltas(ForwardState f, LoraViews lora) {
    this.f = f;
    this.lora = lora;
    plan = f.plan;
    w = f.mlp.weights();
    team = f.mlp.team();
    maxRank = f.mlp.maxRank();
    f32 = f.mlp.kernels().forType(DType.F32);
    missing = new AtomicIntegerArray(w.count());
    expertTiles = new int[w.count() + 1];
    panels = new PanelDeltas(f, lora);
  }

  /** {@return whether any of some sorted positions has an adapter} */
  boolean touches(int from, int to) {
    int s = lora.any() ? plan.segmentAt(from) : plan.segments;
    return s < plan.segments && plan.segmentStart[s] < to;
  }

  /** {@return where a position that stands in no panel has its deltas of up, or down} */
  long deltaRow(int position) {
    MlpLayout l = f.where();
    return l.delta() + ~f.panels.panelOf[position] * l.deltaLane();
  }

  /** {@return whether a position's deltas of down stand in a row} */
  boolean changesDown(int position, int slot) {
    return slot >= 0 && lora.down[slot].rank() > 0 && f.panels.panelOf[position] < 0;
  }

  /** Finds the tiles of a new plan: in the order of experts. */
  void plan() {
    PanelPlan p = f.panels;
    int panel = 0;
    int count = 0;
    for (int e = 0; e < w.count(); e++) {
      expertTiles[e] = count;
      int from = plan.expertSegments[e];
      int to = plan.expertSegments[e + 1];
      boolean inPanels = panel < p.panels && p.panelExpert[panel] == e;
      if (count + to - from + p.panels > tiles.length) {
        tiles = Arrays.copyOf(tiles, 2 * (count + to - from + p.panels));
      }
      for (; panel < p.panels && p.panelExpert[panel] == e; panel++) {
        if (touches(p.panelStart[panel], endOf(panel))) {
          tiles[count++] = ~panel;
        }
      }
      for (int s = from; s < to && !inPanels; s++) {
        tiles[count++] = s;
      }
    }
    expertTiles[w.count()] = count;
  }

  /** Where the positions end that a panel's tile is for: the last one's takes the tail, too. */
  private int endOf(int panel) {
    PanelPlan p = f.panels;
    int e = p.panelExpert[panel];
    boolean last = panel + 1 == p.panels || p.panelExpert[panel + 1] != e;
    return last ? plan.expertStart[e + 1] : p.panelStart[panel + 1];
  }

  /** Counts what a region waits for; each one anew, since one that threw leaves counts behind. */
  void begin() {
    for (int e = 0; e < w.count(); e++) {
      missing.setPlain(e, expertTiles[e + 1] - expertTiles[e]);
    }
  }

  /** Deltas of gate and up, for the tokens of a segment or a panel. */
  void tile13(int tile, int member) {
    int t = tiles[tile];
    int from = t >= 0 ? plan.segmentStart[t] : f.panels.end(~t);
    int to = t >= 0 ? plan.segmentEnd[t] : endOf(~t);
    if (t < 0) {
      panels.tile13(~t, member);
    }
    for (int s = plan.segmentAt(from); s < plan.segments && plan.segmentStart[s] < to; s++) {
      LoraView g = lora.gate[plan.segmentSlot[s]];
      LoraView u = lora.up[plan.segmentSlot[s]];
      int a = Math.max(from, plan.segmentStart[s]);
      int b = Math.min(to, plan.segmentEnd[s]);
      if (g.rank() > 0) {
        shrink(g, s, a, b, true, member);
        expand(g, s, a, b, true, member);
      }
      if (u.rank() > 0) {
        if (!u.sharesA(g)) {
          shrink(u, s, a, b, true, member);
        }
        expand(u, s, a, b, false, member);
      }
    }
    missing.decrementAndGet(expertOf(t));
  }

  /** Deltas of down, likewise. */
  void tile2(int tile, int member) {
    int t = tiles[tile];
    int from = t >= 0 ? plan.segmentStart[t] : f.panels.end(~t);
    int to = t >= 0 ? plan.segmentEnd[t] : endOf(~t);
    if (t < 0) {
      panels.tile2(~t, member);
    }
    for (int s = plan.segmentAt(from); s < plan.segments && plan.segmentStart[s] < to; s++) {
      LoraView d = lora.down[plan.segmentSlot[s]];
      if (d.rank() > 0) {
        int a = Math.max(from, plan.segmentStart[s]);
        int b = Math.min(to, plan.segmentEnd[s]);
        shrink(d, s, a, b, false, member);
        expand(d, s, a, b, false, member);
      }
    }
    missing.decrementAndGet(expertOf(t));
  }

  private int expertOf(int t) {
    return t >= 0 ? plan.segmentExpert[t] : f.panels.panelExpert[~t];
  }

  /**
   * What a tile's sums begin with: deltas, once they are there, or zeros.
   *
   * @param panel whose sums
   * @param row0 first row of the tile, counted as sums are
   * @param c index of the panel's sums
   * @param n how many
   */
  void start(int panel, int row0, float[] sums, int c, int n) {
    PanelPlan p = f.panels;
    if (!touches(p.panelStart[panel], f.panels.end(panel))) {
      Arrays.fill(sums, c, c + n, 0f);
      return;
    }
    team.awaitZero(missing, p.panelExpert[panel]);
    panels.copy(panel, row0, sums, c, n);
  }

  private void shrink(LoraView view, int segment, int from, int to, boolean first, int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    long stride = 4L * maxRank;
    for (int p = from, m; p < to; p += m) {
      m = f.groupOf(to - p);
      for (int j = 0; j < m; j++) {
        own.at[j] = first ? f.xRow(p + j) : f.actRow(p + j);
      }
      long s = f.where().scratchOf(member) + (p - from) * stride;
      view.shrink(plan.segmentExpert[segment], ws, own.at, m, ws, s, stride, own.dots);
    }
  }

  private void expand(LoraView view, int segment, int from, int to, boolean gates, int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    for (int j = 0; j < to - from; j++) {
      own.at[j] = gates ? f.actRow(from + j) : deltaRow(from + j);
    }
    int e = plan.segmentExpert[segment];
    long s = f.where().scratchOf(member);
    view.expand(e, 0, view.outputs(), ws, s, 4L * maxRank, to - from, ws, own.at, false);
  }

  /**
   * Adds gate and up deltas to products of some sorted positions of one expert, once they are
   * there.
   *
   * @param g gate products of {@code from}, of which row {@code row0} comes first
   * @param u likewise up
   * @param stride bytes from one position's products to the next's
   */
  void add13(int e, int from, int to, int row0, int n, long g, long u, long stride) {
    if (!touches(from, to)) {
      return;
    }
    team.awaitZero(missing, e);
    MemorySegment ws = f.workspace();
    for (int s = plan.segmentAt(from); s < plan.segments && plan.segmentStart[s] < to; s++) {
      boolean hasGate = lora.gate[plan.segmentSlot[s]].rank() > 0;
      boolean hasUp = lora.up[plan.segmentSlot[s]].rank() > 0;
      int end = Math.min(to, plan.segmentEnd[s]);
      for (int p = Math.max(from, plan.segmentStart[s]); p < end; p++) {
        long o = (p - from) * stride;
        if (hasGate) {
          f32.axpy(1f, ws, f.actRow(p) + 4L * row0, ws, g + o, n);
        }
        if (hasUp) {
          f32.axpy(1f, ws, deltaRow(p) + 4L * row0, ws, u + o, n);
        }
      }
    }
  }
}
