package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.jspecify.annotations.Nullable;

/**
 * The computation of some MLPs over the tokens routed to each: w13 product, LoRA, activation, w2
 * product, LoRA, weighted sum. Thread-safe: each call works on its own workspace and on a state
 * taken from a pool.
 */
final class GroupedMlp {
  /** Pairs handled at a time; bounds the workspace whatever {@code T}. */
  static final int CHUNK_PAIRS = 8192;

  /** Rows of w13 or w2 that a tile computes. */
  static final int ROW_TILE = 64;

  /** Tokens that a tile computes. */
  static final int TOKEN_TILE = 32;

  /** Where things stand in the workspace, in bytes. */
  record Layout(
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
      long total) {}

  /**
   * What one call computes.
   *
   * @param hidden {@code [T, H]} of {@code hiddenType} from its start
   * @param ids int32 {@code [T, K]}; null = every pair goes to MLP 0
   * @param weights F32 {@code [T, K]}; null = 1
   * @param map int32 global to local; null = ids are local
   * @param lora adapters or null
   * @param output {@code [T, H]} of {@code outputType}
   */
  record Call(
      MemorySegment hidden,
      DType hiddenType,
      int tokens,
      int topK,
      @Nullable MemorySegment ids,
      @Nullable MemorySegment weights,
      @Nullable MemorySegment map,
      @Nullable MoeLoraContext lora,
      MemorySegment output,
      DType outputType) {}

  final MlpWeights weights;
  final Kernels kernels;
  final ThreadTeam team;
  final boolean weightOnInput;
  final int maxLoras;
  final int maxRank;
  final boolean batchInvariant;
  private final int topK;
  private final ConcurrentLinkedQueue<MlpForward> pool = new ConcurrentLinkedQueue<>();

  GroupedMlp(
      MlpWeights weights,
      Kernels kernels,
      ThreadTeam team,
      int topK,
      boolean weightOnInput,
      int maxLoras,
      int maxRank,
      boolean batchInvariant) {
    this.weights = weights;
    this.kernels = kernels;
    this.team = team;
    this.topK = topK;
    this.weightOnInput = weightOnInput;
    this.maxLoras = maxLoras;
    this.maxRank = maxRank;
    this.batchInvariant = batchInvariant;
  }

  /** {@return tokens handled at a time} */
  int chunk() {
    return Math.max(1, CHUNK_PAIRS / topK);
  }

  Layout layout(int maxTokens) {
    int tokens = Math.min(Math.max(1, maxTokens), chunk());
    long pairs = (long) tokens * topK;
    long xStride = Workspace.align(4L * weights.hidden);
    long actStride = Workspace.align(4L * weights.intermediate);
    long deltaLane = maxLoras > 0 ? PanelDeltas.laneBytes(weights) : 0;
    long scratchStride =
        Workspace.align(
            Math.max(
                maxLoras > 0 ? LoraDeltas.scratchBytes(weights, maxRank, usesPanels()) : 0,
                Math.max(
                    4L * (2L * TOKEN_TILE + 4) * ROW_TILE,
                    usesPanels() ? PanelTiles.scratchBytes() : 0)));
    long lanes = usesPanels() ? PanelPlan.maxLanes(pairs, weights.count(), kernels.lanes()) : 0;
    long x = 0;
    long act = x + xStride * (weightOnInput ? pairs : tokens);
    long y = act + actStride * pairs;
    long delta = y + xStride * pairs;
    long xPanels = delta + Workspace.align(deltaLane * (usesPanels() ? lanes : pairs));
    long actPanels = xPanels + Workspace.align(4L * lanes * weights.hidden);
    long scratch = actPanels + Workspace.align(4L * lanes * weights.intermediate);
    long total = scratch + scratchStride * team.size();
    return new Layout(
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
        total);
  }

  /**
   * {@return whether experts with many tokens are computed by panels; their sums run in another
   * order, so not where results may not depend on the batch}
   */
  boolean usesPanels() {
    return kernels.lanes() > 1 && !batchInvariant;
  }

  long workspaceBytes(int maxTokens) {
    return layout(maxTokens).total();
  }

  void run(Call call, MemorySegment workspace) {
    if (call.tokens() == 0) {
      return;
    }
    MlpForward f = pool.poll();
    if (f == null) {
      f = new MlpForward(this);
    }
    try {
      f.run(call, layout(call.tokens()), workspace);
    } finally {
      f.clear();
      pool.add(f);
    }
  }
}
