package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * Experts with few tokens: dot products of weight rows with the rows of a few tokens, straight from
 * the weights. A tile is {@link MlpLayout#ROW_TILE} rows for at most {@link MlpLayout#TOKEN_TILE}
 * sorted positions of one expert.
 */
final class RowTiles {
  private static final int ROW_TILE = MlpLayout.ROW_TILE;
  private static final int TOKEN_TILE = MlpLayout.TOKEN_TILE;
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;

  private final ForwardState f;
  private final MlpSpec mlp;
  private final MlpWeights w;
  private final TypedKernels f32;
  private final LoraDeltas lora;

  /** Stretches of at most {@link MlpLayout#TOKEN_TILE} positions of one expert. */
  private int blocks;

  private int[] blockExpert = new int[0];
  private int[] blockStart = new int[0];
  private int[] blockEnd = new int[0];

  RowTiles(ForwardState f, LoraDeltas lora) {
    this.f = f;
    this.lora = lora;
    mlp = f.mlp;
    w = mlp.weights();
    f32 = mlp.kernels().forType(DType.F32);
  }

  void clear() {
    blocks = 0;
  }

  /** Takes the sorted positions {@code from..to-1} of an expert. */
  void add(int expert, int from, int to) {
    for (int s = from; s < to; s += TOKEN_TILE) {
      if (blocks == blockExpert.length) {
        int n = Math.max(64, 2 * blocks);
        blockExpert = Arrays.copyOf(blockExpert, n);
        blockStart = Arrays.copyOf(blockStart, n);
        blockEnd = Arrays.copyOf(blockEnd, n);
      }
      blockExpert[blocks] = expert;
      blockStart[blocks] = s;
      blockEnd[blocks++] = Math.min(to, s + TOKEN_TILE);
    }
  }

  int tiles13() {
    return blocks * Math.ceilDiv(w.intermediate, ROW_TILE);
  }

  int tiles2() {
    return blocks * Math.ceilDiv(w.hidden, ROW_TILE);
  }

  /** {@return the expert of a tile} */
  int expertOf(int tile) {
    return blockExpert[tile % blocks];
  }

  void tile13(int index, int member) {
    int block = index % blocks;
    int row0 = index / blocks * ROW_TILE;
    int n = Math.min(ROW_TILE, w.intermediate - row0);
    int e = blockExpert[block];
    int from = blockStart[block];
    int to = blockEnd[block];
    long stride = 4L * ROW_TILE;
    long g = f.where().scratchOf(member);
    long u = g + TOKEN_TILE * stride;
    products13(e, from, to, row0, n, g, u, stride, member);
    finish13(e, from, to, row0, n, g, u, stride);
  }

  /**
   * Gate and up products of some sorted positions of one expert.
   *
   * @param g gate results of {@code from}, of which row {@code row0} comes first
   * @param u likewise up
   * @param stride bytes from one position's results to the next's
   */
  private void products13(
      int e, int from, int to, int row0, int n, long g, long u, long stride, int member) {
    boolean gated = w.activation.isGated();
    long[] at = f.scratch(member).at;
    for (int p = from, m; p < to; p += m) {
      m = f.groupOf(to - p);
      for (int j = 0; j < m; j++) {
        at[j] = f.xRow(p + j);
      }
      long o = (p - from) * stride;
      if (gated && w.gate[e] instanceof Rows rows) {
        multiply(rows, row0, n, m, g + o, stride, member);
      }
      if (w.up[e] instanceof Rows rows) {
        multiply(rows, row0, n, m, u + o, stride, member);
      }
    }
    if (gated && w.gate[e] instanceof CodedRows coded) {
      multiply(coded, true, from, to, row0, n, g, stride, member);
    }
    if (w.up[e] instanceof CodedRows coded) {
      multiply(coded, true, from, to, row0, n, u, stride, member);
    }
  }

  /** Bias, LoRA and activation of what {@link #products13} left. */
  void finish13(int e, int from, int to, int row0, int n, long g, long u, long stride) {
    for (int p = from; p < to; p++) {
      addBias(w.gateBias[e], row0, g + (p - from) * stride, n);
      addBias(w.upBias[e], row0, u + (p - from) * stride, n);
    }
    lora.add13(e, from, to, row0, n, g, u, stride);
    for (int p = from; p < to; p++) {
      long o = (p - from) * stride;
      mlp.kernels()
          .activate(
              w.activation,
              f.workspace(),
              g + o,
              f.workspace(),
              u + o,
              f.workspace(),
              f.actRow(p) + 4L * row0,
              n);
    }
  }

  /** Some rows of a matrix times the vectors at the member's {@code at}, to the workspace. */
  private void multiply(Rows m, int row, int rows, int tokens, long out, long stride, int member) {
    MemberScratch s = f.scratch(member);
    TypedKernels k = mlp.kernels().forType(m.type(), m.segment());
    long first = m.offset() + row * m.stride();
    k.dot(
        m.segment(),
        first,
        m.stride(),
        rows,
        f.workspace(),
        s.at,
        tokens,
        m.cols(),
        f.workspace(),
        out,
        stride,
        s.dots);
  }

  /**
   * Some rows of a matrix in codes times some sorted positions: a few rows are widened at a time
   * and meet all positions while they are in a cache.
   *
   * @param first whether positions' inputs are multiplied, or their activations
   * @param out results of {@code from}, of which row {@code row0} comes first
   * @param stride bytes from one position's results to the next's
   */
  private void multiply(
      CodedRows m,
      boolean first,
      int from,
      int to,
      int row0,
      int n,
      long out,
      long stride,
      int member) {
    MemorySegment ws = f.workspace();
    MemberScratch s = f.scratch(member);
    MlpLayout l = f.where();
    long widened = l.widenedOf(member);
    long rowBytes = 4L * m.cols();
    for (int r = 0; r < n; r += MlpLayout.WIDENED_ROWS) {
      int rows = Math.min(MlpLayout.WIDENED_ROWS, n - r);
      for (int k0 = 0; k0 < m.cols(); k0 += Kernels.PANEL_K) {
        int k = Math.min(Kernels.PANEL_K, m.cols() - k0);
        m.widen(mlp.kernels(), row0 + r, rows, k0, k, s.weights, 0);
        for (int i = 0; i < rows; i++) {
          long row = widened + i * rowBytes + 4L * k0;
          MemorySegment.copy(s.weights, i * Kernels.PANEL_STRIDE, ws, F32, row, k);
        }
      }
      for (int p = from, j; p < to; p += j) {
        j = f.groupOf(to - p);
        for (int t = 0; t < j; t++) {
          s.at[t] = first ? f.xRow(p + t) : f.actRow(p + t);
        }
        long o = out + (p - from) * stride + 4L * r;
        f32.dot(ws, widened, rowBytes, rows, ws, s.at, j, m.cols(), ws, o, stride, s.dots);
      }
    }
  }

  private void addBias(@Nullable MemorySegment bias, int row0, long at, int n) {
    if (bias != null) {
      f32.axpy(1f, bias, 4L * row0, f.workspace(), at, n);
    }
  }

  void tile2(int index, int member) {
    int block = index % blocks;
    int row0 = index / blocks * ROW_TILE;
    int n = Math.min(ROW_TILE, w.hidden - row0);
    int e = blockExpert[block];
    int from = blockStart[block];
    int to = blockEnd[block];
    products2(e, from, to, row0, n, member);
    addBias2(e, from, to, row0, n);
  }

  /** The w2 product of some sorted positions of one expert, rows {@code row0..row0+n-1}. */
  private void products2(int e, int from, int to, int row0, int n, int member) {
    MlpLayout l = f.where();
    long y = l.y() + from * l.yStride() + 4L * row0;
    switch (w.down[e]) {
      case CodedRows coded -> multiply(coded, false, from, to, row0, n, y, l.yStride(), member);
      case Rows rows -> {
        long[] at = f.scratch(member).at;
        for (int p = from, m; p < to; p += m) {
          m = f.groupOf(to - p);
          for (int j = 0; j < m; j++) {
            at[j] = f.actRow(p + j);
          }
          long o = y + (p - from) * l.yStride();
          multiply(rows, row0, n, m, o, l.yStride(), member);
        }
      }
    }
  }

  /** Bias on rows {@code row0..row0+n-1} of the w2 product of some positions. */
  void addBias2(int e, int from, int to, int row0, int n) {
    MemorySegment bias = w.downBias[e];
    if (bias != null) {
      MlpLayout l = f.where();
      for (int p = from; p < to; p++) {
        addBias(bias, row0, l.y() + p * l.yStride() + 4L * row0, n);
      }
    }
  }
}
