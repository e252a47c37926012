package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicIntegerArray;
import org.jspecify.annotations.Nullable;

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
  private final MlpForward f;
  private final MlpWeights w;
  private final GroupedMlp mlp;
  private final TokenPlan plan;
  private final TypedKernels f32;
  private final PanelDeltas panels;
  final LoraView[] gate;
  final LoraView[] up;
  final LoraView[] down;

  /** By slot: whether it has factors for any of the three. */
  final boolean[] live;

  /** By expert: tiles whose deltas are not there yet. */
  private final AtomicIntegerArray missing;

  /** By expert: where its tiles begin; one entry more than experts. */
  final int[] expertTiles;

  /** A segment, or {@code ~panel}. */
  private int[] tiles = new int[0];

  private boolean any;

  LoraDeltas(MlpForward f, GroupedMlp mlp, TokenPlan plan) {
    this.f = f;
    this.mlp = mlp;
    this.plan = plan;
    w = mlp.weights;
    f32 = mlp.kernels.forType(DType.F32);
    live = new boolean[mlp.maxLoras];
    missing = new AtomicIntegerArray(w.count());
    expertTiles = new int[w.count() + 1];
    panels = new PanelDeltas(f, mlp, plan, this);
    gate = views(mlp);
    up = views(mlp);
    down = views(mlp);
  }

  private static LoraView[] views(GroupedMlp mlp) {
    LoraView[] v = new LoraView[mlp.maxLoras];
    Arrays.setAll(v, i -> new LoraView(mlp.kernels));
    return v;
  }

  /**
   * Looks at a call's adapters.
   *
   * @return whether there are any
   */
  boolean look(@Nullable MoeLoraContext context) {
    any = false;
    if (context == null || !context.hasLora()) {
      return false;
    }
    for (int s = 0; s < live.length; s++) {
      LoraLayer layer = s < context.maxLoras() ? context.slot(s) : null;
      set(gate[s], layer, w.gateTarget);
      set(up[s], layer, w.upTarget);
      set(down[s], layer, w.downTarget);
      live[s] = gate[s].rank() + up[s].rank() + down[s].rank() > 0;
      any |= live[s];
    }
    return any;
  }

  private static void set(LoraView view, @Nullable LoraLayer layer, LoraTarget target) {
    view.set(layer == null ? null : layer.get(target));
  }

  /** Lets go of the caller's factors. */
  void clear() {
    for (int s = 0; s < live.length; s++) {
      gate[s].set(null);
      up[s].set(null);
      down[s].set(null);
    }
  }

  /** {@return what one member needs of the workspace for LoRA} */
  static long scratchBytes(MlpWeights w, int maxRank, boolean panels) {
    int tokens = Math.max(TokenPlan.SEGMENT_TOKENS, PanelTiles.MAX_WIDTH);
    long shrunk = Workspace.align(4L * ((long) maxRank * tokens + 64));
    return shrunk + (panels ? PanelDeltas.rowStride(w) * PanelTiles.MAX_WIDTH : 0);
  }

  /** {@return the first segment that ends after a position} */
  int segmentAt(int position) {
    int lo = 0;
    int hi = plan.segments;
    while (lo < hi) {
      int mid = (lo + hi) >>> 1;
      if (plan.segmentEnd[mid] > position) {
        hi = mid;
      } else {
        lo = mid + 1;
      }
    }
    return lo;
  }

  /** {@return whether any of some sorted positions has an adapter} */
  boolean touches(int from, int to) {
    int s = any ? segmentAt(from) : plan.segments;
    return s < plan.segments && plan.segmentStart[s] < to;
  }

  private long gateRow(int position) {
    GroupedMlp.Layout l = f.where();
    return l.act() + position * l.actStride();
  }

  /** {@return where a position that stands in no panel has its deltas of up, or down} */
  long deltaRow(int position) {
    GroupedMlp.Layout l = f.where();
    return l.delta() + ~f.panelPlan().panelOf[position] * l.deltaLane();
  }

  /** {@return whether a position's deltas of down stand in a row} */
  boolean changesDown(int position, int slot) {
    return slot >= 0 && down[slot].rank() > 0 && f.panelPlan().panelOf[position] < 0;
  }

  /** Finds the tiles of a new plan: in the order of experts. */
  void plan() {
    PanelPlan p = f.panelPlan();
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
    PanelPlan p = f.panelPlan();
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
    int from = t >= 0 ? plan.segmentStart[t] : panels.end(~t);
    int to = t >= 0 ? plan.segmentEnd[t] : endOf(~t);
    if (t < 0) {
      panels.tile13(~t, member);
    }
    for (int s = segmentAt(from); s < plan.segments && plan.segmentStart[s] < to; s++) {
      LoraView g = gate[plan.segmentSlot[s]];
      LoraView u = up[plan.segmentSlot[s]];
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
    int from = t >= 0 ? plan.segmentStart[t] : panels.end(~t);
    int to = t >= 0 ? plan.segmentEnd[t] : endOf(~t);
    if (t < 0) {
      panels.tile2(~t, member);
    }
    for (int s = segmentAt(from); s < plan.segments && plan.segmentStart[s] < to; s++) {
      LoraView d = down[plan.segmentSlot[s]];
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
    return t >= 0 ? plan.segmentExpert[t] : f.panelPlan().panelExpert[~t];
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
    PanelPlan p = f.panelPlan();
    if (!touches(p.panelStart[panel], panels.end(panel))) {
      Arrays.fill(sums, c, c + n, 0f);
      return;
    }
    mlp.team.awaitZero(missing, p.panelExpert[panel]);
    panels.copy(panel, row0, sums, c, n);
  }

  /** {@return where a member keeps what it shrunk} */
  long shrunk(int member) {
    GroupedMlp.Layout l = f.where();
    return l.scratch() + member * l.scratchStride();
  }

  private void shrink(LoraView view, int segment, int from, int to, boolean first, int member) {
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    MemberScratch own = f.scratch(member);
    long stride = 4L * mlp.maxRank;
    for (int p = from, m; p < to; p += m) {
      m = f.groupOf(to - p);
      for (int j = 0; j < m; j++) {
        own.at[j] = first ? f.xRow(p + j) : l.act() + (p + j) * l.actStride();
      }
      long s = shrunk(member) + (p - from) * stride;
      view.shrink(plan.segmentExpert[segment], ws, own.at, m, ws, s, stride, own.dots);
    }
  }

  private void expand(LoraView view, int segment, int from, int to, boolean gates, int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    for (int j = 0; j < to - from; j++) {
      own.at[j] = gates ? gateRow(from + j) : deltaRow(from + j);
    }
    int e = plan.segmentExpert[segment];
    long s = shrunk(member);
    view.expand(e, 0, view.outputs(), ws, s, 4L * mlp.maxRank, to - from, ws, own.at, false);
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
    mlp.team.awaitZero(missing, e);
    MemorySegment ws = f.workspace();
    for (int s = segmentAt(from); s < plan.segments && plan.segmentStart[s] < to; s++) {
      boolean hasGate = gate[plan.segmentSlot[s]].rank() > 0;
      boolean hasUp = up[plan.segmentSlot[s]].rank() > 0;
      int end = Math.min(to, plan.segmentEnd[s]);
      for (int p = Math.max(from, plan.segmentStart[s]); p < end; p++) {
        long o = (p - from) * stride;
        if (hasGate) {
          f32.axpy(1f, ws, gateRow(p) + 4L * row0, ws, g + o, n);
        }
        if (hasUp) {
          f32.axpy(1f, ws, deltaRow(p) + 4L * row0, ws, u + o, n);
        }
      }
    }
  }
}
