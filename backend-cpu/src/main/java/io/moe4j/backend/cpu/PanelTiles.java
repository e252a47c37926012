package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.DType;
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
  private static final long WEIGHT_BYTES = 4L * ROWS * Kernels.PANEL_STRIDE;

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

  /** A panel needs an even number of rows. */
  static int even(int k) {
    return (k + 1) & ~1;
  }

  /** What one member's scratch takes: weights, sums, LoRA deltas, tail results. */
  static long scratchBytes(int lanes) {
    return WEIGHT_BYTES + sumBytes(lanes) * PanelPlan.MAX_GROUP + 3 * sumBytes(lanes);
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

  private long scratch(int member) {
    GroupedMlp.Layout l = f.where();
    return l.scratch() + member * l.scratchStride();
  }

  private long xPanel(int panel) {
    return f.where().xPanels() + 4L * plan.panelLane[panel] * even(w.hidden);
  }

  private long actPanel(int panel) {
    return f.where().actPanels() + 4L * plan.panelLane[panel] * even(w.intermediate);
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
    if ((k & 1) != 0) {
      zero(ws, dst + 4L * k * width, width);
    }
    if ((w.intermediate & 1) != 0) {
      zero(ws, actPanel(panel) + 4L * w.intermediate * width, width);
    }
  }

  private static void zero(MemorySegment ws, long at, int floats) {
    for (int i = 0; i < floats; i++) {
      ws.set(F32, at + 4L * i, 0f);
    }
  }

  /** Widens rows into scratch; an odd last column is followed by a zero. */
  private void widen(
      TypedKernels typed,
      Rows rows,
      int row0,
      int count,
      int k0,
      int k,
      long to,
      int elementBytes) {
    MemorySegment ws = f.workspace();
    for (int r = 0; r < count; r++) {
      long at = to + 4L * r * Kernels.PANEL_STRIDE;
      typed.widen(
          rows.segment(),
          rows.offset() + (row0 + r) * rows.stride() + (long) k0 * elementBytes,
          ws,
          at,
          k,
          1f);
      if ((k & 1) != 0) {
        ws.set(F32, at + 4L * k, 0f);
      }
    }
  }

  void tile13(int index, int member) {
    int group = index / rowTiles13();
    int row0 = index % rowTiles13() * outputs13();
    int e = plan.groupExpert[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    int outputs = Math.min(outputs13(), w.intermediate - row0);
    int blocks = Math.ceilDiv(outputs, perBlock);
    long weights = scratch(member);
    long sums = weights + WEIGHT_BYTES;
    long tail = sums + sumBytes(lanes) * PanelPlan.MAX_GROUP;
    TypedKernels typed = kernels.forType(w.upType);
    int size = w.upType.bits() / 8;
    for (int k0 = 0; k0 < w.hidden; k0 += Kernels.PANEL_K) {
      int k = Math.min(Kernels.PANEL_K, w.hidden - k0);
      for (int b = 0; b < blocks; b++) {
        int r0 = row0 + b * perBlock;
        int count = Math.min(perBlock, w.intermediate - r0);
        if (gated) {
          widen(typed, w.gate[e], r0, count, k0, k, weights, size);
          widen(
              typed,
              w.up[e],
              r0,
              count,
              k0,
              k,
              weights + 4L * perBlock * Kernels.PANEL_STRIDE,
              size);
        } else {
          widen(typed, w.up[e], r0, count, k0, k, weights, size);
        }
        Rows a = gated ? w.gate[e] : w.up[e];
        int coming = b + 1 < blocks ? Math.min(perBlock, w.intermediate - r0 - perBlock) : 0;
        multiply(group, b, k0, k, weights, sums, true, a, w.up[e], r0 + perBlock, coming);
        tail(group, b, k0, k, weights, tail, true);
      }
    }
    finish13(group, row0, outputs, blocks, sums, tail);
  }

  /**
   * One block of twelve rows with every panel of the group. Meanwhile the rows of the next block
   * are fetched: {@code coming} rows from {@code nextRow} on of {@code a} and of {@code b}, or as
   * many rows behind those where both are one matrix.
   */
  private void multiply(
      int group,
      int block,
      int k0,
      int k,
      long weights,
      long sums,
      boolean first,
      Rows a,
      Rows b,
      int nextRow,
      int coming) {
    MemorySegment ws = f.workspace();
    int count = plan.groupPanels[group];
    long bytes = a.isDense() && b.isDense() ? coming * a.stride() : 0;
    long step = Math.max(0, bytes - Long.BYTES) / ((long) k * Math.max(1, count));
    boolean fetch = step > 0;
    long behind = first ? 0 : bytes;
    for (int i = 0; i < count; i++) {
      int panel = plan.groupPanel[group] + i;
      int vectors = plan.panelVectors[panel];
      long x = (first ? xPanel(panel) : actPanel(panel)) + 4L * k0 * vectors * lanes;
      long c = sums + i * sumBytes(lanes) + 4L * block * ROWS * vectors * lanes;
      if (k0 == 0) {
        zero(ws, c, ROWS * vectors * lanes);
      }
      long at = nextRow * a.stride() + i * step * k;
      long fetched =
          fetch
              ? kernels.panel(
                  ws,
                  weights,
                  ws,
                  x,
                  vectors,
                  even(k),
                  ws,
                  c,
                  a.segment(),
                  a.offset() + at,
                  b.segment(),
                  b.offset() + at + behind,
                  step)
              : kernels.panel(
                  ws, weights, ws, x, vectors, even(k), ws, c, ws, weights, ws, weights, 0);
      // Somebody has to use it, or the compiler drops the reads.
      ws.set(ValueLayout.JAVA_LONG_UNALIGNED, weights + WEIGHT_BYTES - Long.BYTES, fetched);
    }
  }

  /** The same rows with the tail's tokens, one dot product each. */
  private void tail(int group, int block, int k0, int k, long weights, long to, boolean first) {
    int m = plan.tailTokens[group];
    MemorySegment ws = f.workspace();
    TypedKernels f32 = kernels.forType(DType.F32);
    int start = plan.tailStart[group];
    long spare = to + 4L * TILE_ROWS * TypedKernels.MAX_TOKENS;
    for (int t = 0, n; t < m; t += n) {
      n = Math.min(TypedKernels.MAX_TOKENS, m - t);
      long stride = 4L * TILE_ROWS;
      long c = to + t * stride + 4L * block * ROWS;
      long part = k0 == 0 ? c : spare;
      f32.dot(
          ws,
          weights,
          4L * Kernels.PANEL_STRIDE,
          ROWS,
          ws,
          tailRow(start + t, first) + 4L * k0,
          tailRow(start + Math.min(t + 1, m - 1), first) + 4L * k0,
          tailRow(start + Math.min(t + 2, m - 1), first) + 4L * k0,
          tailRow(start + Math.min(t + 3, m - 1), first) + 4L * k0,
          n,
          k,
          ws,
          part,
          stride);
      if (k0 > 0) {
        for (int j = 0; j < n; j++) {
          f32.axpy(1f, ws, part + j * stride, ws, c + j * stride, ROWS);
        }
      }
    }
  }

  private long tailRow(int position, boolean first) {
    GroupedMlp.Layout l = f.where();
    return first ? f.xRow(position) : l.act() + position * l.actStride();
  }

  /** Bias, LoRA, activation. */
  private void finish13(int group, int row0, int outputs, int blocks, long sums, long tail) {
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    int e = plan.groupExpert[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    long deltas = tail + sumBytes(lanes);
    for (int i = 0; i < plan.groupPanels[group]; i++) {
      int panel = plan.groupPanel[group] + i;
      int width = plan.panelVectors[panel] * lanes;
      long c = sums + i * sumBytes(lanes);
      int start = plan.panelStart[panel];
      int tokens = plan.panelTokens[panel];
      boolean lora = f.hasLora(start, start + tokens);
      if (lora) {
        deltas13(start, tokens, row0, outputs, c, width, deltas);
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
    finishTail13(group, row0, outputs, blocks, tail, deltas);
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
      int start, int tokens, int row0, int outputs, long c, int width, long deltas) {
    MemorySegment ws = f.workspace();
    int perBlock = gated ? ROWS / 2 : ROWS;
    long stride = 4L * outputs13();
    long g = deltas;
    long u = gated ? deltas + stride * 2 * lanes : deltas;
    zero(ws, g, (int) ((gated ? 2 : 1) * stride * 2 * lanes / 4));
    f.addLora13(start, start + tokens, row0, outputs, g, u, stride, u + stride * 2 * lanes);
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

  private void finishTail13(int group, int row0, int outputs, int blocks, long tail, long deltas) {
    int m = plan.tailTokens[group];
    if (m == 0) {
      return;
    }
    MemorySegment ws = f.workspace();
    GroupedMlp.Layout l = f.where();
    int e = plan.groupExpert[group];
    int start = plan.tailStart[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    long stride = 4L * outputs13();
    long g = deltas;
    long u = gated ? deltas + stride * m : deltas;
    for (int t = 0; t < m; t++) {
      for (int b = 0; b < blocks; b++) {
        int count = Math.min(perBlock, outputs - b * perBlock);
        long from = tail + t * 4L * TILE_ROWS + 4L * b * ROWS;
        for (int r = 0; r < count; r++) {
          long to = t * stride + 4L * (b * perBlock + r);
          if (gated) {
            ws.set(F32, g + to, ws.get(F32, from + 4L * r));
          }
          ws.set(F32, u + to, ws.get(F32, from + 4L * (gated ? perBlock + r : r)));
        }
      }
      if (gated) {
        f.addBias(w.gateBias[e], row0, g + t * stride, outputs);
      }
      f.addBias(w.upBias[e], row0, u + t * stride, outputs);
    }
    f.addLora13(start, start + m, row0, outputs, g, u, stride, u + stride * m);
    for (int t = 0; t < m; t++) {
      kernels.activate(
          w.activation,
          ws,
          g + t * stride,
          ws,
          u + t * stride,
          ws,
          l.act() + (start + t) * l.actStride() + 4L * row0,
          outputs);
    }
  }

  void tile2(int index, int member) {
    int group = index / rowTiles2();
    int row0 = index % rowTiles2() * TILE_ROWS;
    int e = plan.groupExpert[group];
    int outputs = Math.min(TILE_ROWS, w.hidden - row0);
    int blocks = Math.ceilDiv(outputs, ROWS);
    long weights = scratch(member);
    long sums = weights + WEIGHT_BYTES;
    long tail = sums + sumBytes(lanes) * PanelPlan.MAX_GROUP;
    TypedKernels typed = kernels.forType(w.downType);
    int size = w.downType.bits() / 8;
    for (int k0 = 0; k0 < w.intermediate; k0 += Kernels.PANEL_K) {
      int k = Math.min(Kernels.PANEL_K, w.intermediate - k0);
      for (int b = 0; b < blocks; b++) {
        int r0 = row0 + b * ROWS;
        widen(typed, w.down[e], r0, Math.min(ROWS, w.hidden - r0), k0, k, weights, size);
        int coming = b + 1 < blocks ? Math.min(ROWS, w.hidden - r0 - ROWS) / 2 : 0;
        multiply(group, b, k0, k, weights, sums, false, w.down[e], w.down[e], r0 + ROWS, coming);
        tail(group, b, k0, k, weights, tail, false);
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
      f.finish2(e, start, start + plan.panelTokens[panel], row0, outputs, tail + sumBytes(lanes));
    }
    int start = plan.tailStart[group];
    int m = plan.tailTokens[group];
    for (int t = 0; t < m; t++) {
      MemorySegment.copy(
          ws,
          tail + t * 4L * TILE_ROWS,
          ws,
          l.y() + (start + t) * l.yStride() + 4L * row0,
          4L * outputs);
    }
    if (m > 0) {
      f.finish2(e, start, start + m, row0, outputs, tail + sumBytes(lanes));
    }
  }
}
