package io.moe4j.backend.cpu;

import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * One call of {@link GroupedMlp} at work: six regions per chunk of tokens, each a set of
 * independent tiles. Every output element is summed by one tile in one order, so results do not
 * depend on the number of threads.
 */
final class MlpForward {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final ValueLayout.OfShort I16 = ValueLayout.JAVA_SHORT_UNALIGNED;
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final int TOKENS_PER_TILE = 8;

  private final MlpSpec mlp;
  private final MlpWeights w;
  private final TypedKernels f32;
  private final ForwardState f;
  private final TokenPlan plan;
  private final PanelPlan panelPlan;
  private final LoraViews adapters;
  private final LoraDeltas lora;
  private final RowTiles rows;
  private final PanelTiles panels;
  private final TileOrder order = new TileOrder();

  private final ThreadTeam.Region prepare = this::prepareTile;
  private final ThreadTeam.Region pack;
  private final ThreadTeam.Region product13 = this::product13Tile;
  private final ThreadTeam.Region product2 = this::product2Tile;
  private final ThreadTeam.Region adapted13 = this::adapted13Tile;
  private final ThreadTeam.Region adapted2 = this::adapted2Tile;
  private final ThreadTeam.Region combine = this::combineTile;

  private MemorySegment hidden = NONE;
  private DType hiddenType = DType.F32;
  private MemorySegment output = NONE;
  private DType outputType = DType.F32;
  private @Nullable MemorySegment topkWeights;
  private int topK;
  private int chunkStart;
  private int chunkTokens;

  MlpForward(MlpSpec mlp) {
    this.mlp = mlp;
    w = mlp.weights();
    f32 = mlp.kernels().forType(DType.F32);
    f = new ForwardState(mlp);
    plan = f.plan;
    panelPlan = f.panels;
    adapters = new LoraViews(mlp);
    lora = new LoraDeltas(f, adapters);
    rows = new RowTiles(f, lora);
    panels = new PanelTiles(f, lora, rows);
    pack = panels::pack;
  }

  void run(MlpCall call, MlpLayout where, MemorySegment workspace) {
    f.begin(call, where, workspace);
    hidden = call.hidden();
    hiddenType = call.hiddenType();
    output = call.output();
    outputType = call.outputType();
    topkWeights = call.weights();
    topK = call.topK();
    MoeLoraContext context = call.lora();
    MemorySegment mapping = null;
    if (adapters.set(context) && context != null) {
      mapping = context.tokenLoraMapping().segment();
    }
    MemorySegment map = call.map();
    int mapSize = map == null ? 0 : (int) (map.byteSize() / 4);
    ThreadTeam team = mlp.team();
    for (int t0 = 0; t0 < call.tokens(); t0 += where.tokens()) {
      chunkStart = t0;
      chunkTokens = Math.min(where.tokens(), call.tokens() - t0);
      plan.build(call.ids(), map, mapSize, mapping, adapters.live, t0, chunkTokens, topK);
      findBlocks();
      lora.plan();
      if (plan.size > 0) {
        int inputs = mlp.weightOnInput() ? chunkTokens * topK : chunkTokens;
        team.run(prepare, Math.ceilDiv(inputs, TOKENS_PER_TILE));
        team.run(pack, panelPlan.panels);
        int tiles13 = panels.tiles13() + rows.tiles13();
        int tiles2 = panels.tiles2() + rows.tiles2();
        if (plan.segments == 0) {
          team.run(product13, tiles13);
          team.run(product2, tiles2);
        } else {
          lora.begin();
          order(panels.tiles13(), tiles13, true);
          team.run(adapted13, order.count);
          lora.begin();
          order(panels.tiles2(), tiles2, false);
          team.run(adapted2, order.count);
        }
      }
      team.run(combine, Math.ceilDiv(chunkTokens, TOKENS_PER_TILE));
    }
  }

  /** Lets go of everything the caller owns. */
  void clear() {
    f.clear();
    hidden = NONE;
    output = NONE;
    topkWeights = null;
    adapters.clear();
  }

  private void findBlocks() {
    rows.clear();
    panelPlan.clear(plan.size);
    boolean usesPanels = mlp.usesPanels();
    for (int e = 0; e < w.count(); e++) {
      int from = plan.expertStart[e];
      int to = plan.expertStart[e + 1];
      if (usesPanels && panelPlan.worthwhile(to - from)) {
        panelPlan.add(e, from, to - from, w.hidden);
      } else {
        panelPlan.addRows(from, to - from);
        rows.add(e, from, to);
      }
    }
  }

  /** Hidden states to F32, one row a token, or a weighted one a pair. */
  private void prepareTile(int index, int member) {
    MlpLayout l = f.where();
    MemorySegment ws = f.workspace();
    TypedKernels k = mlp.kernels().forType(hiddenType, hidden);
    int inputs = mlp.weightOnInput() ? chunkTokens * topK : chunkTokens;
    int end = Math.min(inputs, (index + 1) * TOKENS_PER_TILE);
    long rowBytes = (long) w.hidden * (hiddenType.bits() / 8);
    for (int row = index * TOKENS_PER_TILE; row < end; row++) {
      long t = (long) chunkStart + (mlp.weightOnInput() ? row / topK : row);
      float scale = mlp.weightOnInput() ? weight(row) : 1f;
      k.widen(hidden, t * rowBytes, ws, l.x() + row * l.xStride(), w.hidden, scale);
    }
  }

  /** The topk weight of a pair of this chunk. */
  private float weight(int pair) {
    MemorySegment s = topkWeights;
    return s == null ? 1f : s.get(F32, 4L * ((long) chunkStart * topK + pair));
  }

  /**
   * Deltas come before the tiles that begin with them, spread over the tiles of a group before: as
   * many groups ahead as there are threads, which would wait for the first ones otherwise.
   *
   * @param panelTiles tiles of panels, which come first
   * @param tiles all of the base product
   * @param rowsWait whether the others add deltas too; if not, those are spread over all of them
   */
  private void order(int panelTiles, int tiles, boolean rowsWait) {
    order.clear();
    int[] ends = lora.expertTiles;
    int groups = panelPlan.groups;
    int each = groups == 0 ? 0 : panelTiles / groups;
    int ahead = mlp.team().size() - 1;
    for (int g = 0; g < groups; g++) {
      int now = ends[panelPlan.groupExpert[Math.min(g + ahead, groups - 1)] + 1];
      int then = ends[panelPlan.groupExpert[Math.min(g + ahead + 1, groups - 1)] + 1];
      for (int i = 0; i < each; i++) {
        order.add(g * each + i, now + (then - now) * (i + 1) / each);
      }
    }
    int there = groups == 0 ? 0 : ends[panelPlan.groupExpert[groups - 1] + 1];
    int more = ends[w.count()] - there;
    for (int t = panelTiles; t < tiles; t++) {
      order.add(
          t,
          rowsWait
              ? ends[rows.expertOf(t - panelTiles) + 1]
              : there + (int) ((t + 1L - panelTiles) * more / (tiles - panelTiles)));
    }
  }

  private void adapted13Tile(int index, int member) {
    int tile = order.get(index);
    if (tile < 0) {
      lora.tile13(~tile, member);
    } else {
      product13Tile(tile, member);
    }
  }

  private void adapted2Tile(int index, int member) {
    int tile = order.get(index);
    if (tile < 0) {
      lora.tile2(~tile, member);
    } else {
      product2Tile(tile, member);
    }
  }

  private void product13Tile(int tile, int member) {
    int index = tile - panels.tiles13();
    if (index < 0) {
      panels.tile13(tile, member);
    } else {
      rows.tile13(index, member);
    }
  }

  private void product2Tile(int tile, int member) {
    int index = tile - panels.tiles2();
    if (index < 0) {
      panels.tile2(tile, member);
    } else {
      rows.tile2(index, member);
    }
  }

  /** Weighted sums over k, in order of k, to the output's dtype. */
  private void combineTile(int index, int member) {
    MlpLayout l = f.where();
    MemorySegment ws = f.workspace();
    int end = Math.min(chunkTokens, (index + 1) * TOKENS_PER_TILE);
    // The token's own row of x has been read by everybody who needs it.
    for (int t = index * TOKENS_PER_TILE; t < end; t++) {
      long sum = l.x() + t * l.xStride();
      boolean any = false;
      for (int k = 0; k < topK; k++) {
        int pair = t * topK + k;
        int p = plan.position[pair];
        if (p >= 0) {
          float factor = mlp.weightOnInput() ? 1f : weight(pair);
          long y = l.y() + p * l.yStride();
          if (any) {
            f32.axpy(factor, ws, y, ws, sum, w.hidden);
          } else {
            f32.widen(ws, y, ws, sum, w.hidden, factor);
          }
          if (lora.changesDown(p, plan.slot(pair))) {
            f32.axpy(factor, ws, lora.deltaRow(p), ws, sum, w.hidden);
          }
          any = true;
        }
      }
      if (!any) {
        ws.asSlice(sum, 4L * w.hidden).fill((byte) 0);
      }
      store(ws, sum, output, outputType, (long) (chunkStart + t) * w.hidden, w.hidden);
    }
  }

  /** Rounds a row to a dtype, to nearest even. */
  static void store(
      MemorySegment from, long at, MemorySegment to, DType type, long firstElement, int n) {
    switch (type) {
      case F32 -> MemorySegment.copy(from, at, to, 4 * firstElement, 4L * n);
      case BF16 -> {
        for (int i = 0; i < n; i++) {
          to.set(I16, 2 * (firstElement + i), Tensor.toBFloat16(from.get(F32, at + 4L * i)));
        }
      }
      case F16 -> {
        for (int i = 0; i < n; i++) {
          to.set(I16, 2 * (firstElement + i), Float.floatToFloat16(from.get(F32, at + 4L * i)));
        }
      }
      default -> throw new IllegalArgumentException("output dtype is " + type);
    }
  }
}
