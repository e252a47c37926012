package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * The deltas of tokens in panels. A panel's segments leave rows of deltas, some columns at a time,
 * in memory that the thread uses again and again. Transposed, they lie as the sums of the base
 * product do, and those begin with them. The activations that are multiplied by down's A are
 * transposed out of the panel likewise.
 */
final class PanelDeltas {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final int ROWS = Kernels.PANEL_ROWS;

  /** Rows of gate, then as many of up: how the sums of w13 take turns. */
  private static final int TURN = ROWS / 2;

  /** Outputs of B at a time. */
  private static final int PIECE = MlpLayout.DELTA_PIECE;

  private final ForwardState f;
  private final MlpWeights w;
  private final int maxRank;
  private final Kernels kernels;
  private final int lanes;
  private final TokenPlan plan;
  private final PanelPlan panels;
  private final LoraViews lora;

  PanelDeltas(ForwardState f, LoraViews lora) {
    this.f = f;
    this.lora = lora;
    plan = f.plan;
    panels = f.panels;
    w = f.mlp.weights();
    maxRank = f.mlp.maxRank();
    kernels = f.mlp.kernels();
    lanes = kernels.lanes();
  }

  private long deltas(int panel) {
    MlpLayout l = f.where();
    return l.delta() + panels.panelLane[panel] * l.deltaLane();
  }

  private int width(int panel) {
    return panels.panelVectors[panel] * lanes;
  }

  /** Takes deltas as sums. */
  void copy(int panel, int row0, float[] sums, int c, int n) {
    MemorySegment.copy(f.workspace(), F32, deltas(panel) + 4L * row0 * width(panel), sums, c, n);
  }

  /** Deltas of gate and up for a panel's tokens. */
  void tile13(int panel, int member) {
    boolean gated = w.activation.isGated();
    if (gated) {
      shrink(lora.gate, null, panel, true, member);
      expand(lora.gate, panel, w.intermediate, 0, ROWS, member);
    }
    shrink(lora.up, gated ? lora.gate : null, panel, true, member);
    expand(lora.up, panel, w.intermediate, gated ? TURN : 0, gated ? ROWS : TURN, member);
  }

  /** Deltas of down for a panel's tokens. */
  void tile2(int panel, int member) {
    activations(panel, member);
    shrink(lora.down, null, panel, false, member);
    expand(lora.down, panel, w.hidden, 0, TURN, member);
  }

  /** Activations into the member's rows. */
  private void activations(int panel, int member) {
    MemorySegment ws = f.workspace();
    float[] turned = f.scratch(member).turned;
    int width = width(panel);
    int tokens = panels.panelTokens[panel];
    long from = f.actPanel(panel);
    long stride = f.where().rowStride();
    for (int k = 0; k < w.intermediate; k += lanes) {
      for (int t = 0; t < tokens; t += lanes) {
        long at = from + 4L * (k * width + t);
        long to = f.where().rowsOf(member) + t * stride + 4L * k;
        int m = Math.min(lanes, tokens - t);
        kernels.transpose(ws, at, 4L * width, turned, ws, to, stride, 0, TURN, m);
      }
    }
  }

  /**
   * A panel's tokens times A.
   *
   * @param last whose results the member still has, some may be the same
   * @param first whether the tokens are those of w13
   */
  private void shrink(
      LoraView[] views, LoraView @Nullable [] last, int panel, boolean first, int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    int start = panels.panelStart[panel];
    int end = panels.end(panel);
    long stride = 4L * maxRank;
    for (int s = plan.segmentAt(start); s < plan.segments && plan.segmentStart[s] < end; s++) {
      int slot = plan.segmentSlot[s];
      LoraView view = views[slot];
      boolean needed = view.rank() > 0 && (last == null || !view.sharesA(last[slot]));
      int to = needed ? Math.min(end, plan.segmentEnd[s]) : 0;
      for (int p = Math.max(start, plan.segmentStart[s]), m; p < to; p += m) {
        m = f.groupOf(to - p);
        for (int j = 0; j < m; j++) {
          own.at[j] =
              first
                  ? f.xRow(p + j)
                  : f.where().rowsOf(member) + (p + j - start) * f.where().rowStride();
        }
        long out = f.where().scratchOf(member) + (p - start) * stride;
        view.shrink(plan.segmentExpert[s], ws, own.at, m, ws, out, stride, own.dots);
      }
    }
  }

  /**
   * What was shrunk into a panel's deltas.
   *
   * @param row0 where outputs begin among the rows of sums
   * @param jump rows from six outputs to the next six
   */
  private void expand(LoraView[] views, int panel, int outputs, int row0, int jump, int member) {
    MemorySegment ws = f.workspace();
    float[] turned = f.scratch(member).turned;
    int width = width(panel);
    long rows = f.where().rowsOf(member);
    long stride = f.where().rowStride();
    long to = deltas(panel) + 4L * row0 * width;
    for (int o = 0; o < outputs; o += PIECE) {
      int n = Math.min(PIECE, outputs - o);
      expandRows(views, panel, o, n, member);
      for (int r = 0; r < n; r += lanes) {
        int m = Math.min(lanes, n - r);
        for (int t = 0; t < width; t += lanes) {
          long from = rows + t * stride + 4L * r;
          kernels.transpose(ws, from, stride, turned, ws, to + 4L * t, 4L * width, o + r, jump, m);
        }
      }
    }
  }

  /** Outputs {@code o..o+n-1} into the member's rows, zeros for tokens without adapter. */
  private void expandRows(LoraView[] views, int panel, int o, int n, int member) {
    MemorySegment ws = f.workspace();
    MemberScratch own = f.scratch(member);
    int start = panels.panelStart[panel];
    int end = panels.end(panel);
    long rows = f.where().rowsOf(member);
    long stride = f.where().rowStride();
    int done = start;
    for (int s = plan.segmentAt(start); s < plan.segments && plan.segmentStart[s] < end; s++) {
      LoraView view = views[plan.segmentSlot[s]];
      if (view.rank() == 0) {
        continue;
      }
      int from = Math.max(start, plan.segmentStart[s]);
      int to = Math.min(end, plan.segmentEnd[s]);
      for (int j = 0; j < to - from; j++) {
        own.at[j] = rows + (from + j - start) * stride;
      }
      clear(done - start, from - start, n, member);
      long shrunk = f.where().scratchOf(member) + (from - start) * 4L * maxRank;
      int e = plan.segmentExpert[s];
      view.expand(e, o, n, ws, shrunk, 4L * maxRank, to - from, ws, own.at, false);
      done = to;
    }
    clear(done - start, width(panel), n, member);
  }

  private void clear(int from, int to, int n, int member) {
    // Not by a slice each: that would be an object.
    float[] zeros = f.scratch(member).turned;
    Arrays.fill(zeros, 0, n, 0f);
    for (int t = from; t < to; t++) {
      MemorySegment.copy(
          zeros, 0, f.workspace(), F32, f.where().rowsOf(member) + t * f.where().rowStride(), n);
    }
  }
}
