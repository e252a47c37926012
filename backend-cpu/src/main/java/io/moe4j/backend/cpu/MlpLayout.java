package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.backend.cpu.kernel.Kernels;

/**
 * Where things stand in the workspace of a {@link GroupedMlp}, in bytes from its start.
 *
 * @param tokens handled at a time
 * @param x F32 hidden states, one row a token; a row a pair if topk weights scale the input
 * @param act activations, one row a sorted position
 * @param y the w2 product, one row a sorted position
 * @param delta what adapters add, {@code deltaLane} bytes for each lane
 * @param xPanels hidden states of tokens in panels, {@code [k, width]}
 * @param actPanels their activations, likewise
 * @param scratch of the first thread; the next one's is {@code scratchStride} bytes on
 * @param shrunk bytes at the start of a thread's scratch for what LoRA A gives
 * @param rowStride bytes from one row to the next in the scratch of {@link PanelDeltas}
 * @param widened rows of a matrix in codes that the first thread has widened; the next one's are
 *     {@code widenedStride} bytes on
 * @param widenedStride 0 where no matrix is in codes
 * @param total size of the workspace
 */
record MlpLayout(
    int tokens,
    long x,
    long xStride,
    long act,
    long actStride,
    long y,
    long yStride,
    long delta,
    long deltaLane,
    long xPanels,
    long actPanels,
    long scratch,
    long scratchStride,
    long shrunk,
    long rowStride,
    long widened,
    long widenedStride,
    long total) {
  /** Pairs handled at a time; bounds the workspace whatever {@code T}. */
  static final int CHUNK_PAIRS = 8192;

  /** Rows of w13 or w2 that a tile of {@link RowTiles} computes. */
  static final int ROW_TILE = 64;

  /** Tokens that a tile of {@link RowTiles} computes. */
  static final int TOKEN_TILE = 32;

  /** Rows of a matrix in codes that {@link RowTiles} widens at a time. */
  static final int WIDENED_ROWS = 8;

  /** Outputs of LoRA B that {@link PanelDeltas} computes at a time. */
  static final int DELTA_PIECE = 1024;

  private static final int ROWS = Kernels.PANEL_ROWS;

  /** {@return the layout for calls of at most so many tokens} */
  static MlpLayout of(MlpSpec mlp, int maxTokens) {
    MlpWeights w = mlp.weights();
    boolean panels = mlp.usesPanels();
    int tokens = Math.min(Math.max(1, maxTokens), Math.max(1, CHUNK_PAIRS / mlp.topK()));
    long pairs = (long) tokens * mlp.topK();
    long xStride = Workspace.align(4L * w.hidden);
    long actStride = Workspace.align(4L * w.intermediate);
    long deltaLane = mlp.maxLoras() > 0 ? laneBytes(w) : 0;
    long rowStride = rowStride(w);
    int shrunkTokens = Math.max(TokenPlan.SEGMENT_TOKENS, PanelPlan.MAX_WIDTH);
    long shrunk = Workspace.align(4L * ((long) mlp.maxRank() * shrunkTokens + 64));
    long loraScratch = shrunk + (panels ? rowStride * PanelPlan.MAX_WIDTH : 0);
    long scratchStride =
        Workspace.align(
            Math.max(
                mlp.maxLoras() > 0 ? loraScratch : 0,
                Math.max(
                    4L * (2L * TOKEN_TILE + 4) * ROW_TILE, panels ? 4 * 4L * PanelPlan.SUMS : 0)));
    long lanes = panels ? PanelPlan.maxLanes(pairs, w.count(), mlp.kernels().lanes()) : 0;
    WorkspaceLayout layout = new WorkspaceLayout();
    long x = layout.reserve(xStride * (mlp.weightOnInput() ? pairs : tokens));
    long act = layout.reserve(actStride * pairs);
    long y = layout.reserve(xStride * pairs);
    long delta = layout.reserve(deltaLane * (panels ? lanes : pairs));
    long xPanels = layout.reserve(4L * lanes * w.hidden);
    long actPanels = layout.reserve(4L * lanes * w.intermediate);
    long scratch = layout.reserve(scratchStride * mlp.team().size());
    long widenedStride =
        w.isCoded() ? Workspace.align(4L * WIDENED_ROWS * Math.max(w.hidden, w.intermediate)) : 0;
    long widened = layout.reserve(widenedStride * mlp.team().size());
    return new MlpLayout(
        tokens,
        x,
        xStride,
        act,
        actStride,
        y,
        xStride,
        delta,
        deltaLane,
        xPanels,
        actPanels,
        scratch,
        scratchStride,
        shrunk,
        rowStride,
        widened,
        widenedStride,
        layout.byteSize());
  }

  /** {@return bytes of deltas for one lane: as many rows as the sums of w13 or w2 have} */
  private static long laneBytes(MlpWeights w) {
    int outputs13 = w.activation.isGated() ? ROWS / 2 : ROWS;
    long up = (long) Math.ceilDiv(w.intermediate, outputs13) * ROWS;
    return Workspace.align(4 * Math.max(up, (long) Math.ceilDiv(w.hidden, ROWS) * ROWS));
  }

  private static long rowStride(MlpWeights w) {
    // Room for the vector behind the last, and an odd number of cache lines: sixteen rows that are
    // transposed would share one set of the first-level cache otherwise.
    long bytes = Workspace.align(4L * (Math.max(w.intermediate, DELTA_PIECE) + 16));
    return (bytes / Workspace.ALIGNMENT | 1) * Workspace.ALIGNMENT;
  }

  /** {@return where a thread's scratch begins} */
  long scratchOf(int member) {
    return scratch + member * scratchStride;
  }

  /** {@return where a thread widens rows of a matrix in codes} */
  long widenedOf(int member) {
    return widened + member * widenedStride;
  }

  /** {@return where a thread keeps the rows of {@link PanelDeltas}} */
  long rowsOf(int member) {
    return scratchOf(member) + shrunk;
  }
}
