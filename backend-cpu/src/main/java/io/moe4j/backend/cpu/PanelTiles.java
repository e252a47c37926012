package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Experts with many tokens: weights are widened once per tile, twelve rows at a time, into scratch
 * that stays in the core's cache, and multiplied with panels of tokens that lie side by side
 * ({@code [k, tokens]}). The w13 tile interleaves six gate and six up rows, so that the activation
 * follows at once and leaves its result as the panel that w2 reads.
 */
final class PanelTiles {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final int ROWS = Kernels.PANEL_ROWS;

  /** Times twelve rows in a tile. */
  private static final int BLOCKS = 8;

  private static final int TILE_ROWS = BLOCKS * ROWS;

  private final MlpForward f;
  private final MlpWeights w;
  private final Kernels kernels;
  private final int lanes;
  private final boolean gated;
  final PanelPlan plan;

  PanelTiles(MlpForward f, GroupedMlp mlp) {
    this.f = f;
    w = mlp.weights;
    kernels = mlp.kernels;
    lanes = kernels.lanes();
    gated = w.activation.isGated();
    plan = new PanelPlan(lanes);
  }

  /** What one member takes of the workspace: sums, LoRA deltas or the tail's results, spare. */
  static long scratchBytes(int lanes) {
    return sumBytes(lanes) * PanelPlan.MAX_GROUP + 2 * sumBytes(lanes);
  }

  private static long sumBytes(int lanes) {
    return 4L * TILE_ROWS * 2 * lanes;
  }

  int tiles13() {
    return plan.groups * rowTiles13();
  }

  int tiles2() {
    return plan.groups * rowTiles2();
  }

  private int outputs13() {
    return gated ? TILE_ROWS / 2 : TILE_ROWS;
  }

  private int rowTiles13() {
    return Math.ceilDiv(w.intermediate, outputs13());
  }

  private int rowTiles2() {
    return Math.ceilDiv(w.hidden, TILE_ROWS);
  }

  private long deltas(int member) {
    return sums(member) + sumBytes(lanes) * PanelPlan.MAX_GROUP;
  }

  private long spare(int member) {
    return deltas(member) + sumBytes(lanes);
  }

  private long sums(int member) {
    GroupedMlp.Layout l = f.where();
    return l.scratch() + member * l.scratchStride();
  }

  private long xPanel(int panel) {
    return f.where().xPanels() + 4L * plan.panelLane[panel] * w.hidden;
  }

  private long actPanel(int panel) {
    return f.where().actPanels() + 4L * plan.panelLane[panel] * w.intermediate;
  }

  /** Puts a panel's tokens side by side, and zeros where there are none. */
  void pack(int panel, int member) {
    MemorySegment ws = f.workspace();
    int width = plan.panelVectors[panel] * lanes;
    int tokens = plan.panelTokens[panel];
    int start = plan.panelStart[panel];
    long dst = xPanel(panel);
    int k = w.hidden;
    int block = 16;
    for (int i0 = 0; i0 < k; i0 += block) {
      int n = Math.min(block, k - i0);
      for (int t = 0; t < width; t++) {
        long to = dst + 4L * ((long) i0 * width + t);
        if (t < tokens) {
          long from = f.xRow(start + t) + 4L * i0;
          for (int i = 0; i < n; i++) {
            ws.set(F32, to + 4L * i * width, ws.get(F32, from + 4L * i));
          }
        } else {
          for (int i = 0; i < n; i++) {
            ws.set(F32, to + 4L * i * width, 0f);
          }
        }
      }
    }
  }

  private static void zero(MemorySegment ws, long at, int floats) {
    for (int i = 0; i < floats; i++) {
      ws.set(F32, at + 4L * i, 0f);
    }
  }

  /** Widens rows {@code k0..k0+k-1} into the member's scratch, from its row {@code to} on. */
  private void widen(
      TypedKernels typed, Rows rows, int row0, int count, int k0, int k, int to, int member) {
    for (int r = 0; r < count; r++) {
      typed.widen(
          rows.segment(),
          rows.offset() + (row0 + r) * rows.stride() + (long) rows.elementBytes() * k0,
          f.scratch(member).weights,
          (to + r) * Kernels.PANEL_STRIDE,
          k);
    }
  }

  void tile13(int index, int member) {
    int group = index / rowTiles13();
    int row0 = index % rowTiles13() * outputs13();
    int e = plan.groupExpert[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    int outputs = Math.min(outputs13(), w.intermediate - row0);
    int blocks = Math.ceilDiv(outputs, perBlock);
    long sums = sums(member);
    TypedKernels typed = kernels.forType(w.upType);
    Rows up = w.up[e];
    Rows gate = gated ? w.gate[e] : up;
    for (int b = 0; b < blocks; b++) {
      int r0 = row0 + b * perBlock;
      int count = Math.min(perBlock, w.intermediate - r0);
      int next = r0 + perBlock;
      int coming = b + 1 < blocks ? Math.min(perBlock, w.intermediate - next) : 0;
      int half = gated ? coming : coming / 2;
      int nextUp = gated ? next : next + half;
      for (int k0 = 0; k0 < w.hidden; k0 += Kernels.PANEL_K) {
        int k = Math.min(Kernels.PANEL_K, w.hidden - k0);
        if (gated) {
          widen(typed, gate, r0, count, k0, k, 0, member);
        }
        widen(typed, up, r0, count, k0, k, gated ? perBlock : 0, member);
        multiply(group, b, k0, k, member, sums, true, gate, next, up, nextUp, half);
      }
    }
    finish13(group, row0, outputs, blocks, sums, member);
  }

  /**
   * One block of twelve rows with every panel of the group. Meanwhile the rows of the next block
   * are fetched: {@code coming} rows of {@code a} from {@code nextA} on, and of {@code b} from
   * {@code nextB} on.
   */
  private void multiply(
      int group,
      int block,
      int k0,
      int k,
      int member,
      long sums,
      boolean first,
      Rows a,
      int nextA,
      Rows b,
      int nextB,
      int coming) {
    MemorySegment ws = f.workspace();
    int count = plan.groupPanels[group];
    long bytes = a.isDense() && b.isDense() ? coming * a.stride() - Long.BYTES : 0;
    boolean fetch = bytes > 0;
    MemorySegment memoryA = fetch ? a.segment() : ws;
    MemorySegment memoryB = fetch ? b.segment() : ws;
    int half = k / 2;
    // Half of each product's k fetches from a, the other half from b: together, over all k, all
    // rows.
    long step = fetch ? 2 * bytes / ((long) a.cols() * count) : 0;
    long share = step * count * (k0 / 2);
    long fromA = fetch ? a.offset() + nextA * a.stride() + share : 0;
    long fromB = fetch ? b.offset() + nextB * b.stride() + share : 0;
    long fetched = 0;
    float[] weights = f.scratch(member).weights;
    for (int i = 0; i < count; i++) {
      int panel = plan.groupPanel[group] + i;
      int vectors = plan.panelVectors[panel];
      long row = 4L * vectors * lanes;
      long x = (first ? xPanel(panel) : actPanel(panel)) + k0 * row;
      long c = sums + i * sumBytes(lanes) + row * block * ROWS;
      if (k0 == 0) {
        zero(ws, c, ROWS * vectors * lanes);
      }
      long ahead = step * half * i;
      fetched ^=
          kernels.panel(weights, 0, ws, x, vectors, half, ws, c, memoryA, fromA + ahead, step);
      fetched ^=
          kernels.panel(
              weights,
              half,
              ws,
              x + half * row,
              vectors,
              k - half,
              ws,
              c,
              memoryB,
              fromB + ahead,
              step);
    }
    f.scratch(member).seen ^= fetched;
  }

  /** Bias, LoRA, activation. */
  private void finish13(int group, int row0, int outputs, int blocks, long sums, int member) {
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    int e = plan.groupExpert[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    long deltas = deltas(member);
    for (int i = 0; i < plan.groupPanels[group]; i++) {
      int panel = plan.groupPanel[group] + i;
      int width = plan.panelVectors[panel] * lanes;
      long c = sums + i * sumBytes(lanes);
      int start = plan.panelStart[panel];
      int tokens = plan.panelTokens[panel];
      boolean lora = f.hasLora(start, start + tokens);
      if (lora) {
        deltas13(start, tokens, row0, outputs, c, width, member);
      }
      for (int b = 0; b < blocks; b++) {
        int r0 = row0 + b * perBlock;
        int count = Math.min(perBlock, w.intermediate - r0);
        long g = c + 4L * b * ROWS * width;
        long u = gated ? g + 4L * perBlock * width : g;
        if (gated) {
          addBias(w.gateBias[e], r0, count, g, width);
        }
        addBias(w.upBias[e], r0, count, u, width);
        long act = actPanel(panel) + 4L * r0 * width;
        kernels.activate(w.activation, ws, g, ws, u, ws, act, count * width);
      }
      if (lora) {
        // The down shrink reads rows.
        for (int t = 0; t < tokens; t++) {
          long to = l.act() + (start + t) * l.actStride() + 4L * row0;
          long from = actPanel(panel) + 4L * ((long) row0 * width + t);
          for (int r = 0; r < outputs; r++) {
            ws.set(F32, to + 4L * r, ws.get(F32, from + 4L * r * width));
          }
        }
      }
    }
    int from = plan.tailStart[group];
    int to = from + plan.tailTokens[group];
    if (from < to) {
      long stride = 4L * outputs13();
      long u = deltas + stride * (to - from);
      f.products13(e, from, to, row0, outputs, deltas, u, stride, member);
      f.finish13(e, from, to, row0, outputs, deltas, u, stride, spare(member));
    }
  }

  private void addBias(
      @org.jspecify.annotations.Nullable MemorySegment bias,
      int r0,
      int count,
      long at,
      int width) {
    if (bias == null) {
      return;
    }
    MemorySegment ws = f.workspace();
    for (int r = 0; r < count; r++) {
      float v = bias.get(F32, 4L * (r0 + r));
      for (int t = 0; t < width; t++) {
        long o = at + 4L * (r * width + t);
        ws.set(F32, o, ws.get(F32, o) + v);
      }
    }
  }

  /** Gate and up deltas of a panel: computed by token, then added across. */
  private void deltas13(
      int start, int tokens, int row0, int outputs, long c, int width, int member) {
    MemorySegment ws = f.workspace();
    int perBlock = gated ? ROWS / 2 : ROWS;
    long stride = 4L * outputs13();
    long g = deltas(member);
    long u = gated ? g + stride * 2 * lanes : g;
    zero(ws, g, (int) ((gated ? 2 : 1) * stride * 2 * lanes / 4));
    f.addLora13(start, start + tokens, row0, outputs, g, u, stride, spare(member));
    for (int r = 0; r < outputs; r++) {
      long row = c + 4L * ((long) (r / perBlock) * ROWS + r % perBlock) * width;
      long upRow = gated ? row + 4L * perBlock * width : row;
      for (int t = 0; t < tokens; t++) {
        if (gated) {
          add(ws, row + 4L * t, g + t * stride + 4L * r);
        }
        add(ws, upRow + 4L * t, u + t * stride + 4L * r);
      }
    }
  }

  private static void add(MemorySegment ws, long to, long from) {
    ws.set(F32, to, ws.get(F32, to) + ws.get(F32, from));
  }

  void tile2(int index, int member) {
    int group = index / rowTiles2();
    int row0 = index % rowTiles2() * TILE_ROWS;
    int e = plan.groupExpert[group];
    int outputs = Math.min(TILE_ROWS, w.hidden - row0);
    int blocks = Math.ceilDiv(outputs, ROWS);
    long sums = sums(member);
    TypedKernels typed = kernels.forType(w.downType);
    Rows d = w.down[e];
    for (int b = 0; b < blocks; b++) {
      int r0 = row0 + b * ROWS;
      int next = r0 + ROWS;
      int half = b + 1 < blocks ? Math.min(ROWS, w.hidden - next) / 2 : 0;
      for (int k0 = 0; k0 < w.intermediate; k0 += Kernels.PANEL_K) {
        int k = Math.min(Kernels.PANEL_K, w.intermediate - k0);
        widen(typed, d, r0, Math.min(ROWS, w.hidden - r0), k0, k, 0, member);
        multiply(group, b, k0, k, member, sums, false, d, next, d, next + half, half);
      }
    }
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    for (int i = 0; i < plan.groupPanels[group]; i++) {
      int panel = plan.groupPanel[group] + i;
      int width = plan.panelVectors[panel] * lanes;
      long c = sums + i * sumBytes(lanes);
      int start = plan.panelStart[panel];
      for (int t = 0; t < plan.panelTokens[panel]; t++) {
        long to = l.y() + (start + t) * l.yStride() + 4L * row0;
        for (int r = 0; r < outputs; r++) {
          ws.set(F32, to + 4L * r, ws.get(F32, c + 4L * ((long) r * width + t)));
        }
      }
      f.finish2(e, start, start + plan.panelTokens[panel], row0, outputs, spare(member));
    }
    int from = plan.tailStart[group];
    int to = from + plan.tailTokens[group];
    if (from < to) {
      f.products2(e, from, to, row0, outputs, member);
      f.finish2(e, from, to, row0, outputs, spare(member));
    }
  }
}
