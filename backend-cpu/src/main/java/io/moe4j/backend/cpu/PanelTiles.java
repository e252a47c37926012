package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * Experts with many tokens: a tile's 48 rows of weights are widened once, into scratch that stays
 * in the core's cache, and multiplied twelve at a time with panels of tokens that lie side by side
 * ({@code [k, tokens]}). The w13 tile interleaves six gate and six up rows, so that the activation
 * follows at once and leaves its result as the panel that w2 reads.
 */
final class PanelTiles {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final int ROWS = Kernels.PANEL_ROWS;

  /** Columns multiplied at a time: that much of a panel fits a first-level cache. */
  private static final int PIECE = 128;

  /** Columns of tokens that are packed at a time. */
  private static final int PACK = 256;

  private static final int TILE_ROWS = PanelPlan.TILE_ROWS;
  private static final int SUMS = PanelPlan.SUMS;

  private final ForwardState f;
  private final MlpWeights w;
  private final Kernels kernels;
  private final int lanes;
  private final boolean gated;
  private final PanelPlan plan;
  private final LoraDeltas lora;
  private final RowTiles rowTiles;

  PanelTiles(ForwardState f, LoraDeltas lora, RowTiles rowTiles) {
    this.f = f;
    this.lora = lora;
    this.rowTiles = rowTiles;
    w = f.mlp.weights();
    kernels = f.mlp.kernels();
    lanes = kernels.lanes();
    gated = w.activation.isGated();
    plan = f.panels;
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

  /** Where a member works, in the workspace. */
  private long scratch(int member, int part) {
    return f.where().scratchOf(member) + 4L * part * SUMS;
  }

  private long xPanel(int panel) {
    return f.where().xPanels() + 4L * plan.panelLane[panel] * w.hidden;
  }

  /** Puts a panel's tokens side by side, and zeros where there are none. */
  void pack(int panel, int member) {
    MemorySegment ws = f.workspace();
    float[] rows = f.scratch(member).weights;
    int stride = PACK + lanes;
    int width = plan.panelVectors[panel] * lanes;
    int tokens = plan.panelTokens[panel];
    int start = plan.panelStart[panel];
    for (int k0 = 0; k0 < w.hidden; k0 += PACK) {
      int k = Math.min(PACK, w.hidden - k0);
      for (int t = 0; t < width; t++) {
        if (t < tokens) {
          long from = f.xRow(start + t) + 4L * k0;
          MemorySegment.copy(ws, F32, from, rows, t * stride, k);
        } else {
          Arrays.fill(rows, t * stride, t * stride + k, 0f);
        }
      }
      for (int i = 0; i < k; i += lanes) {
        long to = xPanel(panel) + 4L * (k0 + i) * width;
        for (int t = 0; t < width; t += lanes) {
          kernels.transpose(
              rows,
              t * stride + i,
              stride,
              ws,
              to + 4L * t,
              4L * width,
              Math.min(lanes, k - i),
              lanes);
        }
      }
    }
  }

  /** Widens rows {@code k0..k0+k-1} into the member's scratch, from its row {@code to} on. */
  private void widen(Matrix from, int row0, int count, int k0, int k, int to, int member) {
    float[] weights = f.scratch(member).weights;
    from.widen(kernels, row0, count, k0, k, weights, to * Kernels.PANEL_STRIDE);
  }

  void tile13(int index, int member) {
    int group = index / rowTiles13();
    int row0 = index % rowTiles13() * outputs13();
    int e = plan.groupExpert[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    int outputs = Math.min(outputs13(), w.intermediate - row0);
    int blocks = Math.ceilDiv(outputs, perBlock);
    Matrix up = w.up[e];
    Matrix gate = gated ? w.gate[e] : up;
    for (int k0 = 0; k0 < w.hidden; k0 += Kernels.PANEL_K) {
      int k = Math.min(Kernels.PANEL_K, w.hidden - k0);
      for (int b = 0; b < blocks; b++) {
        int r0 = row0 + b * perBlock;
        int count = Math.min(perBlock, w.intermediate - r0);
        if (gated) {
          widen(gate, r0, count, k0, k, b * ROWS, member);
        }
        widen(up, r0, count, k0, k, b * ROWS + (gated ? perBlock : 0), member);
      }
      multiply(group, row0 / perBlock * ROWS, blocks, k0, k, member, true);
      multiplyTail(group, blocks, k0, k, member, true);
    }
    finish13(group, row0, outputs, blocks, member);
  }

  /**
   * The widened rows with every panel of the group, columns {@code k0..k0+k-1}. A piece of a panel
   * meets all rows before the next piece comes: it stays in the first-level cache, and only the
   * rows come from the second: twelve floats for each column, where a panel has up to 64.
   *
   * @param row0 first row of the tile, counted as sums are
   */
  private void multiply(int group, int row0, int blocks, int k0, int k, int member, boolean first) {
    MemorySegment ws = f.workspace();
    float[] weights = f.scratch(member).weights;
    float[] sums = f.scratch(member).sums;
    for (int i = 0; i < plan.groupPanels[group]; i++) {
      int panel = plan.groupPanel[group] + i;
      int vectors = plan.panelVectors[panel];
      long row = 4L * vectors * lanes;
      long x = first ? xPanel(panel) : f.actPanel(panel);
      int c = i * SUMS;
      int block = ROWS * vectors * lanes;
      if (k0 == 0) {
        lora.start(panel, row0, sums, c, blocks * block);
      }
      for (int at = 0; at < k; at += PIECE) {
        int n = Math.min(PIECE, k - at);
        for (int b = 0; b < blocks; b++) {
          int w0 = b * ROWS * Kernels.PANEL_STRIDE + at;
          kernels.panel(weights, w0, ws, x + (k0 + at) * row, vectors, n, sums, c + b * block);
        }
      }
    }
  }

  /**
   * The widened rows with the tokens behind the group's last panel, of which a vector would be
   * mostly empty: {@code [token, row]} into part 3 of the member's workspace.
   */
  private void multiplyTail(int group, int blocks, int k0, int k, int member, boolean first) {
    int from = plan.tailStart[group];
    int tokens = plan.tailTokens[group];
    if (tokens == 0) {
      return;
    }
    MemorySegment ws = f.workspace();
    MemberScratch s = f.scratch(member);
    for (int t = 0; t < tokens; t++) {
      long x = first ? f.xRow(from + t) : f.actRow(from + t);
      MemorySegment.copy(ws, F32, x + 4L * k0, s.dots, t * Kernels.PANEL_STRIDE, k);
    }
    long to = scratch(member, 3);
    long stride = 4L * TILE_ROWS;
    kernels.rows(s.weights, 0, blocks * ROWS, s.dots, tokens, k, ws, to, stride, k0 > 0);
  }

  /** Bias, activation; then the tail, with LoRA. */
  private void finish13(int group, int row0, int outputs, int blocks, int member) {
    MemorySegment ws = f.workspace();
    float[] sums = f.scratch(member).sums;
    int e = plan.groupExpert[group];
    int perBlock = gated ? ROWS / 2 : ROWS;
    long c = scratch(member, 0);
    for (int i = 0; i < plan.groupPanels[group]; i++) {
      int panel = plan.groupPanel[group] + i;
      int width = plan.panelVectors[panel] * lanes;
      MemorySegment.copy(sums, i * SUMS, ws, F32, c, blocks * ROWS * width);
      for (int b = 0; b < blocks; b++) {
        int r0 = row0 + b * perBlock;
        int count = Math.min(perBlock, w.intermediate - r0);
        long g = c + 4L * b * ROWS * width;
        long u = gated ? g + 4L * perBlock * width : g;
        if (gated) {
          addBias(w.gateBias[e], r0, count, g, width);
        }
        addBias(w.upBias[e], r0, count, u, width);
        long act = f.actPanel(panel) + 4L * r0 * width;
        kernels.activate(w.activation, ws, g, ws, u, ws, act, count * width);
      }
    }
    int from = plan.tailStart[group];
    int to = from + plan.tailTokens[group];
    if (from < to) {
      long stride = 4L * outputs13();
      long g = scratch(member, 1);
      long u = scratch(member, 2);
      for (int t = 0; t < to - from; t++) {
        long products = scratch(member, 3) + 4L * t * TILE_ROWS;
        for (int b = 0; b < blocks; b++) {
          long row = products + 4L * b * ROWS;
          long o = t * stride + 4L * b * perBlock;
          if (gated) {
            MemorySegment.copy(ws, row, ws, g + o, 4L * perBlock);
            row += 4L * perBlock;
          }
          MemorySegment.copy(ws, row, ws, u + o, 4L * perBlock);
        }
      }
      rowTiles.finish13(e, from, to, row0, outputs, g, u, stride);
    }
  }

  /** A panel's {@code [rows, tokens]} to the rows of its tokens. */
  private void unpack(float[] from, int at, int rows, int panel, long to, long stride) {
    MemorySegment ws = f.workspace();
    int width = plan.panelVectors[panel] * lanes;
    int tokens = plan.panelTokens[panel];
    for (int t = 0; t < tokens; t += lanes) {
      long row = to + (plan.panelStart[panel] + t) * stride;
      for (int r = 0; r < rows; r += lanes) {
        kernels.transpose(
            from,
            at + r * width + t,
            width,
            ws,
            row + 4L * r,
            stride,
            Math.min(lanes, tokens - t),
            Math.min(lanes, rows - r));
      }
    }
  }

  private void addBias(@Nullable MemorySegment bias, int r0, int count, long at, int width) {
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

  void tile2(int index, int member) {
    int group = index / rowTiles2();
    int row0 = index % rowTiles2() * TILE_ROWS;
    int e = plan.groupExpert[group];
    int outputs = Math.min(TILE_ROWS, w.hidden - row0);
    int blocks = Math.ceilDiv(outputs, ROWS);
    Matrix d = w.down[e];
    for (int k0 = 0; k0 < w.intermediate; k0 += Kernels.PANEL_K) {
      int k = Math.min(Kernels.PANEL_K, w.intermediate - k0);
      widen(d, row0, outputs, k0, k, 0, member);
      multiply(group, row0, blocks, k0, k, member, false);
      multiplyTail(group, blocks, k0, k, member, false);
    }
    MlpLayout l = f.where();
    float[] sums = f.scratch(member).sums;
    for (int i = 0; i < plan.groupPanels[group]; i++) {
      int panel = plan.groupPanel[group] + i;
      int start = plan.panelStart[panel];
      int end = start + plan.panelTokens[panel];
      unpack(sums, i * SUMS, outputs, panel, l.y() + 4L * row0, l.yStride());
      rowTiles.addBias2(e, start, end, row0, outputs);
    }
    int from = plan.tailStart[group];
    int to = from + plan.tailTokens[group];
    if (from < to) {
      MemorySegment ws = f.workspace();
      for (int t = from; t < to; t++) {
        long products = scratch(member, 3) + 4L * (t - from) * TILE_ROWS;
        MemorySegment.copy(ws, products, ws, l.y() + t * l.yStride() + 4L * row0, 4L * outputs);
      }
      rowTiles.addBias2(e, from, to, row0, outputs);
    }
  }
}
