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
  private static final MemberScratch[] NO_SCRATCH = {};
  private static final int ROW_TILE = GroupedMlp.ROW_TILE;
  private static final int TOKEN_TILE = GroupedMlp.TOKEN_TILE;
  private static final int TOKENS_PER_TILE = 8;

  private final GroupedMlp mlp;
  private final MlpWeights w;
  private final TypedKernels f32;
  private final TokenPlan plan;
  final LoraDeltas lora;
  private final PanelTiles panels;
  private final TileOrder order = new TileOrder();

  /** Tokens that share one pass over weights: more where there are registers for their sums. */
  private final int groupLimit;

  private final ThreadTeam.Region prepare = this::prepareTile;
  private final ThreadTeam.Region pack;
  private final ThreadTeam.Region product13 = this::product13Tile;
  private final ThreadTeam.Region product2 = this::product2Tile;
  private final ThreadTeam.Region adapted13 = this::adapted13Tile;
  private final ThreadTeam.Region adapted2 = this::adapted2Tile;
  private final ThreadTeam.Region combine = this::combineTile;

  /** Stretches of at most {@link GroupedMlp#TOKEN_TILE} positions of one expert. */
  private int blocks;

  private int[] blockExpert = new int[0];
  private int[] blockStart = new int[0];
  private int[] blockEnd = new int[0];

  private MemorySegment ws = NONE;
  private GroupedMlp.@Nullable Layout layout;
  private MemorySegment hidden = NONE;
  private DType hiddenType = DType.F32;
  private MemorySegment output = NONE;
  private DType outputType = DType.F32;
  private @Nullable MemorySegment topkWeights;
  private int topK;
  private int chunkStart;
  private int chunkTokens;
  private MemberScratch[] scratch = NO_SCRATCH;

  MlpForward(GroupedMlp mlp) {
    this.mlp = mlp;
    w = mlp.weights;
    f32 = mlp.kernels.forType(DType.F32);
    plan = new TokenPlan(w.count(), mlp.maxLoras);
    lora = new LoraDeltas(this, mlp, plan);
    panels = new PanelTiles(this, mlp);
    groupLimit = mlp.kernels.dotTokens();
    pack = panels::pack;
  }

  void run(Mlp.Call call, GroupedMlp.Layout where, MemorySegment workspace) {
    ws = workspace;
    layout = where;
    hidden = call.hidden();
    hiddenType = call.hiddenType();
    output = call.output();
    outputType = call.outputType();
    topkWeights = call.weights();
    topK = call.topK();
    MoeLoraContext context = call.lora();
    MemorySegment mapping = null;
    if (lora.look(context) && context != null) {
      mapping = context.tokenLoraMapping().segment();
    }
    MemorySegment map = call.map();
    int mapSize = map == null ? 0 : (int) (map.byteSize() / 4);
    ThreadTeam team = mlp.team;
    scratch = MemberScratch.take(team.size());
    for (int t0 = 0; t0 < call.tokens(); t0 += where.tokens()) {
      chunkStart = t0;
      chunkTokens = Math.min(where.tokens(), call.tokens() - t0);
      plan.build(call.ids(), map, mapSize, mapping, lora.live, t0, chunkTokens, topK);
      findBlocks();
      lora.plan();
      if (plan.size > 0) {
        int rows = mlp.weightOnInput ? chunkTokens * topK : chunkTokens;
        team.run(prepare, Math.ceilDiv(rows, TOKENS_PER_TILE));
        team.run(pack, panels.plan.panels);
        int tiles13 = panels.tiles13() + blocks * Math.ceilDiv(w.intermediate, ROW_TILE);
        int tiles2 = panels.tiles2() + blocks * Math.ceilDiv(w.hidden, ROW_TILE);
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
    if (scratch.length > 0) {
      MemberScratch.give(scratch);
      scratch = NO_SCRATCH;
    }
    ws = NONE;
    hidden = NONE;
    output = NONE;
    topkWeights = null;
    lora.clear();
  }

  /** {@return a member's own arrays} */
  MemberScratch scratch(int member) {
    return scratch[member];
  }

  /** {@return the call's workspace} */
  MemorySegment workspace() {
    return ws;
  }

  /** {@return where a panel's activations begin, {@code [intermediate, width]}} */
  long actPanel(int panel) {
    return panels.actPanel(panel);
  }

  /** {@return which sorted positions stand in panels} */
  PanelPlan panelPlan() {
    return panels.plan;
  }

  /** {@return where things stand in it} */
  GroupedMlp.Layout where() {
    return java.util.Objects.requireNonNull(layout);
  }

  private void findBlocks() {
    blocks = 0;
    panels.plan.clear(plan.size);
    boolean usesPanels = mlp.usesPanels();
    for (int e = 0; e < w.count(); e++) {
      int from = plan.expertStart[e];
      int to = plan.expertStart[e + 1];
      if (usesPanels && panels.plan.worthwhile(to - from)) {
        panels.plan.add(e, from, to - from, w.hidden);
        continue;
      }
      panels.plan.addRows(from, to - from);
      for (int s = from; s < to; s += TOKEN_TILE) {
        if (blocks == blockExpert.length) {
          int n = Math.max(64, 2 * blocks);
          blockExpert = java.util.Arrays.copyOf(blockExpert, n);
          blockStart = java.util.Arrays.copyOf(blockStart, n);
          blockEnd = java.util.Arrays.copyOf(blockEnd, n);
        }
        blockExpert[blocks] = e;
        blockStart[blocks] = s;
        blockEnd[blocks++] = Math.min(to, s + TOKEN_TILE);
      }
    }
  }

  /** Hidden states to F32, one row a token, or a weighted one a pair. */
  private void prepareTile(int index, int member) {
    GroupedMlp.Layout l = where();
    TypedKernels k = mlp.kernels.forType(hiddenType, hidden);
    int rows = mlp.weightOnInput ? chunkTokens * topK : chunkTokens;
    int end = Math.min(rows, (index + 1) * TOKENS_PER_TILE);
    long rowBytes = (long) w.hidden * (hiddenType.bits() / 8);
    for (int row = index * TOKENS_PER_TILE; row < end; row++) {
      long t = (long) chunkStart + (mlp.weightOnInput ? row / topK : row);
      float scale = mlp.weightOnInput ? weight(row) : 1f;
      k.widen(hidden, t * rowBytes, ws, l.x() + row * l.xStride(), w.hidden, scale);
    }
  }

  /** The topk weight of a pair of this chunk. */
  private float weight(int pair) {
    MemorySegment s = topkWeights;
    return s == null ? 1f : s.get(F32, 4L * ((long) chunkStart * topK + pair));
  }

  /** {@return where the input of a sorted position stands} */
  long xRow(int position) {
    GroupedMlp.Layout l = where();
    int pair = plan.pair[position];
    return l.x() + (mlp.weightOnInput ? pair : pair / topK) * l.xStride();
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
    int groups = panels.plan.groups;
    int each = groups == 0 ? 0 : panelTiles / groups;
    int ahead = mlp.team.size() - 1;
    for (int g = 0; g < groups; g++) {
      int now = ends[panels.plan.groupExpert[Math.min(g + ahead, groups - 1)] + 1];
      int then = ends[panels.plan.groupExpert[Math.min(g + ahead + 1, groups - 1)] + 1];
      for (int i = 0; i < each; i++) {
        order.add(g * each + i, now + (then - now) * (i + 1) / each);
      }
    }
    int there = groups == 0 ? 0 : ends[panels.plan.groupExpert[groups - 1] + 1];
    int more = ends[w.count()] - there;
    for (int t = panelTiles; t < tiles; t++) {
      order.add(
          t,
          rowsWait
              ? ends[blockExpert[(t - panelTiles) % blocks] + 1]
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
      return;
    }
    GroupedMlp.Layout l = where();
    int block = index % blocks;
    int row0 = index / blocks * ROW_TILE;
    int n = Math.min(ROW_TILE, w.intermediate - row0);
    int e = blockExpert[block];
    int from = blockStart[block];
    int to = blockEnd[block];
    long stride = 4L * ROW_TILE;
    long g = l.scratch() + member * l.scratchStride();
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
  void products13(
      int e, int from, int to, int row0, int n, long g, long u, long stride, int member) {
    boolean gated = w.activation.isGated();
    long[] at = scratch[member].at;
    for (int p = from, m; p < to; p += m) {
      m = groupOf(to - p);
      for (int j = 0; j < m; j++) {
        at[j] = xRow(p + j);
      }
      long o = (p - from) * stride;
      if (gated) {
        multiply(w.upType, w.gate[e], row0, n, m, w.hidden, g + o, stride, member);
      }
      multiply(w.upType, w.up[e], row0, n, m, w.hidden, u + o, stride, member);
    }
  }

  /** Bias, LoRA and activation of what {@link #products13} left. */
  void finish13(int e, int from, int to, int row0, int n, long g, long u, long stride) {
    GroupedMlp.Layout l = where();
    for (int p = from; p < to; p++) {
      addBias(w.gateBias[e], row0, g + (p - from) * stride, n);
      addBias(w.upBias[e], row0, u + (p - from) * stride, n);
    }
    lora.add13(e, from, to, row0, n, g, u, stride);
    for (int p = from; p < to; p++) {
      long o = (p - from) * stride;
      mlp.kernels.activate(
          w.activation, ws, g + o, ws, u + o, ws, l.act() + p * l.actStride() + 4L * row0, n);
    }
  }

  /** Some rows of a matrix times the vectors at the member's {@code at}, to the workspace. */
  private void multiply(
      DType type,
      Rows m,
      int row,
      int rows,
      int tokens,
      int width,
      long out,
      long stride,
      int member) {
    MemberScratch s = scratch[member];
    TypedKernels k = mlp.kernels.forType(type, m.segment());
    long first = m.offset() + row * m.stride();
    k.dot(m.segment(), first, m.stride(), rows, ws, s.at, tokens, width, ws, out, stride, s.dots);
  }

  /** {@return how many of the tokens left go together: groups as even as can be} */
  int groupOf(int left) {
    return Math.ceilDiv(left, Math.ceilDiv(left, groupLimit));
  }

  void addBias(@Nullable MemorySegment bias, int row0, long at, int n) {
    if (bias != null) {
      f32.axpy(1f, bias, 4L * row0, ws, at, n);
    }
  }

  private void product2Tile(int tile, int member) {
    int index = tile - panels.tiles2();
    if (index < 0) {
      panels.tile2(tile, member);
      return;
    }
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
  void products2(int e, int from, int to, int row0, int n, int member) {
    GroupedMlp.Layout l = where();
    long[] at = scratch[member].at;
    for (int p = from, m; p < to; p += m) {
      m = groupOf(to - p);
      for (int j = 0; j < m; j++) {
        at[j] = l.act() + (p + j) * l.actStride();
      }
      long y = l.y() + p * l.yStride() + 4L * row0;
      multiply(w.downType, w.down[e], row0, n, m, w.intermediate, y, l.yStride(), member);
    }
  }

  /** Bias on rows {@code row0..row0+n-1} of the w2 product of some positions. */
  void addBias2(int e, int from, int to, int row0, int n) {
    MemorySegment bias = w.downBias[e];
    if (bias != null) {
      GroupedMlp.Layout l = where();
      for (int p = from; p < to; p++) {
        addBias(bias, row0, l.y() + p * l.yStride() + 4L * row0, n);
      }
    }
  }

  /** Weighted sums over k, in order of k, to the output's dtype. */
  private void combineTile(int index, int member) {
    GroupedMlp.Layout l = where();
    int end = Math.min(chunkTokens, (index + 1) * TOKENS_PER_TILE);
    // The token's own row of x has been read by everybody who needs it.
    for (int t = index * TOKENS_PER_TILE; t < end; t++) {
      long sum = l.x() + t * l.xStride();
      boolean any = false;
      for (int k = 0; k < topK; k++) {
        int pair = t * topK + k;
        int p = plan.position[pair];
        if (p >= 0) {
          float factor = mlp.weightOnInput ? 1f : weight(pair);
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
