package io.moe4j.backend.cpu;

import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.concurrent.atomic.AtomicIntegerArray;
import org.jspecify.annotations.Nullable;

/**
 * What adapters add to the products of one call of {@link GroupedMlp}. The tokens of one expert and
 * one adapter read A and B once, from front to back, and leave rows of deltas that the tiles of the
 * base product add to their own: where an expert meets many adapters with few tokens each, a tile
 * that fetched its piece of every B would wait for memory each time.
 *
 * <p>The deltas of gate stand where the activations will, those of up and down in rows of their
 * own.
 */
final class LoraDeltas {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;

  private final MlpForward f;
  private final MlpWeights w;
  private final GroupedMlp mlp;
  private final TokenPlan plan;
  private final TypedKernels f32;
  private final LoraView[] gate;
  private final LoraView[] up;
  private final LoraView[] down;

  /** By slot: whether it has factors for any of the three. */
  final boolean[] live;

  /** By expert: segments whose gate and up deltas are not there yet. */
  private final AtomicIntegerArray missing;

  private boolean any;

  LoraDeltas(MlpForward f, GroupedMlp mlp, TokenPlan plan) {
    this.f = f;
    this.mlp = mlp;
    this.plan = plan;
    w = mlp.weights;
    f32 = mlp.kernels.forType(DType.F32);
    live = new boolean[mlp.maxLoras];
    missing = new AtomicIntegerArray(w.count());
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

  /** The first segment that ends after a position. */
  private int segmentAt(int position) {
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

  private long deltaRow(int position) {
    GroupedMlp.Layout l = f.where();
    return l.delta() + position * l.deltaStride();
  }

  /** {@return whether a slot adds to what down gives} */
  boolean changesDown(int slot) {
    return slot >= 0 && down[slot].rank() > 0;
  }

  /**
   * Counts what a new plan waits for. For every plan, also one without segments: a call that threw
   * may have left counts behind.
   */
  void begin() {
    for (int e = 0; any && e < w.count(); e++) {
      missing.setPlain(e, plan.expertSegments[e + 1] - plan.expertSegments[e]);
    }
  }

  /** Deltas of gate and up for the tokens of a segment. */
  void tile13(int segment, int member) {
    int from = plan.segmentStart[segment];
    int to = plan.segmentEnd[segment];
    LoraView g = gate[plan.segmentSlot[segment]];
    LoraView u = up[plan.segmentSlot[segment]];
    if (g.rank() > 0) {
      shrink(g, segment, true, member);
      expand(g, segment, true, member);
    } else {
      clearRows(from, to, true, member);
    }
    if (u.rank() > 0) {
      if (!u.sharesA(g)) {
        shrink(u, segment, true, member);
      }
      expand(u, segment, false, member);
    } else {
      clearRows(from, to, false, member);
    }
    int e = plan.segmentExpert[segment];
    if (segment == 0 || plan.segmentExpert[segment - 1] != e) {
      // Tokens without adapter stand before the expert's others.
      clearRows(plan.expertStart[e], from, true, member);
      clearRows(plan.expertStart[e], from, false, member);
    }
    missing.decrementAndGet(e);
  }

  /** Panels add whole vectors of tokens, so in a panel a row without a delta is zero. */
  private void clearRows(int from, int to, boolean gates, int member) {
    if (gates && !w.activation.isGated()) {
      return;
    }
    float[] zeros = f.scratch(member).turned;
    Arrays.fill(zeros, 0f);
    for (int p = from; p < to; p++) {
      if (!f.inPanel(p)) {
        continue;
      }
      long row = gates ? gateRow(p) : deltaRow(p);
      for (int i = 0; i < w.intermediate; i += zeros.length) {
        int n = Math.min(zeros.length, w.intermediate - i);
        MemorySegment.copy(zeros, 0, f.workspace(), F32, row + 4L * i, n);
      }
    }
  }

  /** Deltas of down for the tokens of a segment. */
  void tile2(int segment, int member) {
    LoraView d = down[plan.segmentSlot[segment]];
    if (d.rank() > 0) {
      shrink(d, segment, false, member);
      expand(d, segment, false, member);
    }
  }

  /** Where a member keeps what it shrunk. */
  private long shrunk(int member) {
    GroupedMlp.Layout l = f.where();
    return l.scratch() + member * l.scratchStride();
  }

  private void shrink(LoraView view, int segment, boolean first, int member) {
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    MemberScratch own = f.scratch(member);
    int from = plan.segmentStart[segment];
    int end = plan.segmentEnd[segment];
    long stride = 4L * mlp.maxRank;
    for (int p = from, m; p < end; p += m) {
      m = f.groupOf(end - p);
      for (int j = 0; j < m; j++) {
        own.at[j] = first ? f.xRow(p + j) : l.act() + (p + j) * l.actStride();
      }
      long s = shrunk(member) + (p - from) * stride;
      view.shrink(plan.segmentExpert[segment], ws, own.at, m, ws, s, stride, own.dots);
    }
  }

  private void expand(LoraView view, int segment, boolean gates, int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    int from = plan.segmentStart[segment];
    int tokens = plan.segmentEnd[segment] - from;
    for (int j = 0; j < tokens; j++) {
      own.at[j] = gates ? gateRow(from + j) : deltaRow(from + j);
    }
    int e = plan.segmentExpert[segment];
    view.expand(e, ws, shrunk(member), 4L * mlp.maxRank, tokens, ws, own.at, false);
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
    if (!any) {
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

  /**
   * Adds gate and up deltas to a panel's sums, in which six gate rows and six up rows take turns,
   * once they are there.
   *
   * @param e the panel's expert
   * @param start sorted position of the panel's first token
   * @param width lanes of the panel
   * @param row0 first output of the tile
   * @param c index of the panel's sums
   */
  void addPanel13(int e, int start, int tokens, int width, int row0, int n, int c, int member) {
    GroupedMlp.Layout l = f.where();
    mlp.team.awaitZero(missing, e);
    boolean gated = w.activation.isGated();
    int jump = gated ? 12 : 6;
    if (gated) {
      addPanel(start, tokens, width, l.act(), l.actStride(), row0, n, c, jump, member);
      c += 6 * width;
    }
    addPanel(start, tokens, width, l.delta(), l.deltaStride(), row0, n, c, jump, member);
  }

  private void addPanel(
      int start,
      int tokens,
      int width,
      long rows,
      long stride,
      int row0,
      int n,
      int c,
      int jump,
      int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    int lanes = mlp.kernels.lanes();
    for (int t = 0; t < tokens; t += lanes) {
      int here = Math.min(lanes, tokens - t);
      long row = rows + (start + t) * stride + 4L * row0;
      for (int r = 0; r < n; r += lanes) {
        mlp.kernels.transposeAdd(
            ws,
            row + 4L * r,
            stride,
            here,
            own.turned,
            own.sums,
            c + t,
            width,
            r,
            jump,
            Math.min(lanes, n - r));
      }
    }
  }
}
