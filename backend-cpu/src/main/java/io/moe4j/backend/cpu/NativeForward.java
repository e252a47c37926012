package io.moe4j.backend.cpu;

import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.ffi.CallStruct;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * One call of {@link NativeMlp} at work: up to six regions per chunk of tokens, each a set of
 * independent tasks. Rows of x are copied into the order of experts; then A's products of gate and
 * up, w13 with activation, A's product of down, w2, the weighted sums. Every output element is
 * summed by one task in one order, so results depend neither on the number of threads nor on what
 * else is in the batch.
 */
final class NativeForward {
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;
  private static final int POSITIONS_PER_TILE = 16;
  private static final int TOKENS_PER_TILE = 8;

  /** Tokens of an expert from which on its tasks are longer. */
  private static final int LONG_TASK_ROWS = 32;

  /** How much longer tasks with adapters may be: B is read in longer pieces then. */
  private static final int LONGEST_WITH_LORA = 8;

  /** Tasks of a region for each thread, so that the last ones end together. */
  private static final int TASKS_PER_THREAD = 8;

  private final NativeSpec mlp;
  private final PackedWeights w;
  private final TokenPlan plan;
  private final NativeLora lora;
  private final ThreadTeam.Region gather = this::gatherTile;
  private final ThreadTeam.Region shrink13 = this::shrink13Tile;
  private final ThreadTeam.Region product13 = this::product13Tile;
  private final ThreadTeam.Region reorder13 = (unit, _) -> reorder(unit, false);
  private final ThreadTeam.Region reorder2 = (unit, _) -> reorder(unit, true);
  private final ThreadTeam.Region shrink2 = this::shrink2Tile;
  private final ThreadTeam.Region product2 = this::product2Tile;
  private final ThreadTeam.Region combine = this::combineTile;

  /** Stretches of at most {@link CallStruct#MAX_ROWS} positions of one expert. */
  private int units;

  private int[] unitExpert = new int[0];
  private int[] unitRow = new int[0];
  private int[] unitRows = new int[0];
  private int[] unitSegment = new int[0];
  private int[] unitSegments = new int[0];

  /** Which unit comes when: those of one expert take turns over its weights. */
  private final Tasks tasks13;

  private final Tasks tasks2;

  private MemorySegment hidden = NONE;
  private DType hiddenType = DType.F32;
  private MemorySegment output = NONE;
  private DType outputType = DType.F32;
  private @Nullable MemorySegment topkWeights;
  private long call;
  private int chunkStart;
  private int chunkTokens;

  /** A region's tasks in order. */
  private static final class Tasks {
    int count;
    int[] unit = new int[0];
    int[] block = new int[0];
    int[] blocks = new int[0];

    /** Behind each node's last task. */
    final int[] behind;

    Tasks(int nodes) {
      behind = new int[nodes];
    }

    void add(int u, int first, int n) {
      if (count == unit.length) {
        int size = Math.max(256, 2 * count);
        unit = Arrays.copyOf(unit, size);
        block = Arrays.copyOf(block, size);
        blocks = Arrays.copyOf(blocks, size);
      }
      unit[count] = u;
      block[count] = first;
      blocks[count++] = n;
    }
  }

  NativeForward(NativeSpec mlp) {
    this.mlp = mlp;
    w = mlp.weights();
    plan = new TokenPlan(w.count, mlp.options().maxLoras());
    lora = new NativeLora(w, mlp.options());
    tasks13 = new Tasks(mlp.team().nodes());
    tasks2 = new Tasks(mlp.team().nodes());
  }

  void run(MlpCall c, NativeLayout l, MemorySegment ws) {
    if (ws.byteSize() < l.total()) {
      throw new IllegalArgumentException(
          "the workspace has " + ws.byteSize() + " bytes, this call needs " + l.total());
    }
    int topK = c.topK();
    if (topK != mlp.options().topK()) {
      throw new IllegalArgumentException("topK is " + topK + ", not " + mlp.options().topK());
    }
    hiddenType = c.hiddenType();
    outputType = c.outputType();
    hidden = exactly(c.hidden(), hiddenType, (long) c.tokens() * w.hidden);
    output = exactly(c.output(), outputType, (long) c.tokens() * w.hidden);
    MemorySegment weights = c.weights();
    topkWeights =
        weights == null ? null : exactly(weights, DType.F32, (long) c.tokens() * c.topK());
    MoeLoraContext context = c.lora();
    MemorySegment mapping = null;
    if (lora.look(context) && context != null) {
      mapping = context.tokenLoraMapping().segment();
    }
    MemorySegment map = c.map();
    int mapSize = map == null ? 0 : (int) (map.byteSize() / 4);
    describe(l, ws, topK);
    ThreadTeam team = mlp.team();
    for (int t0 = 0; t0 < c.tokens(); t0 += l.tokens()) {
      chunkStart = t0;
      chunkTokens = Math.min(l.tokens(), c.tokens() - t0);
      plan.build(c.ids(), map, mapSize, mapping, lora.live, t0, chunkTokens, topK);
      MemorySegment.copy(plan.position, 0, ws, I32, l.position(), chunkTokens * topK);
      if (plan.size > 0) {
        MemorySegment.copy(plan.pair, 0, ws, I32, l.pair(), plan.size);
        lora.write(plan, ws, l);
        findTasks();
        team.run(gather, Math.ceilDiv(plan.size, POSITIONS_PER_TILE));
        team.run(shrink13, lora.any13() ? plan.segments : 0);
        team.run(reorder13, l.x13Stride() > 0 ? units : 0);
        team.run(product13, tasks13.behind, false);
        team.run(shrink2, lora.any2() ? plan.segments : 0);
        team.run(reorder2, l.act2Stride() > 0 ? units : 0);
        team.run(product2, tasks2.behind, false);
      }
      team.run(combine, Math.ceilDiv(chunkTokens, TOKENS_PER_TILE));
    }
  }

  private static MemorySegment exactly(MemorySegment s, DType type, long elements) {
    if (s.isMapped()) {
      throw new IllegalStateException("kernels in C are not given memory of a file");
    }
    return s.asSlice(0, type.byteSize(elements));
  }

  /** Lets go of everything the caller owns. */
  void clear() {
    hidden = NONE;
    output = NONE;
    topkWeights = null;
    call = 0;
    lora.clear();
  }

  /** Units that multiply bf16 take rows of bf16, which hidden states of that dtype are. */
  private DType rowType() {
    return mlp.kernels().multipliesBf16(w.w13.plain() == null || w.w2.plain() == null)
            && hiddenType == DType.BF16
            && w.w13.takesBf16Rows()
            && w.w2.takesBf16Rows()
            && !mlp.options().weightOnInput()
            && !w.anyInt8()
        ? DType.BF16
        : DType.F32;
  }

  private void describe(NativeLayout l, MemorySegment ws, int topK) {
    long base = ws.address();
    call = base + l.call();
    DType rows = rowType();
    long xStride = rows.byteSize(w.hiddenPadded) + Workspace.ALIGNMENT;
    long actStride = rows.byteSize(w.intermediatePadded) + Workspace.ALIGNMENT;
    if (xStride > l.xStride() || actStride > l.actStride()) {
      throw new AssertionError("rows of " + rows + " do not fit");
    }
    CallStruct s =
        new CallStruct(ws.asSlice(l.call(), CallStruct.CALL_BYTES))
            .put((long) w.hidden)
            .put((long) w.intermediate)
            .put((long) w.hiddenPadded)
            .put((long) w.intermediatePadded)
            .put((long) w.w13.type())
            .put((long) w.w2.type())
            .put((long) CallStruct.code(rows))
            .put((long) mlp.kernels().code())
            .put((long) CallStruct.code(w.activation.kind()))
            .put(w.activation.alpha())
            .put(w.activation.beta())
            .put(w.activation.limit())
            .put(0f)
            .put(w.w13.address())
            .put(w.w13.expertBytes())
            .put(w.w13.blockBytes())
            .put(w.w2.address())
            .put(w.w2.expertBytes())
            .put(w.w2.blockBytes())
            .put(address(w.b13))
            .put(address(w.b2))
            .put(base + l.x())
            .put(xStride)
            .put(base + l.act())
            .put(actStride)
            .put(base + l.y())
            .put(l.yStride())
            .put(base + l.pair())
            .put(base + l.position())
            .put(w.w13.structAddress())
            .put(w.w2.structAddress())
            .put(w.w13.orderAddress())
            .put(w.w2.orderAddress())
            .put(base + l.x13())
            .put(base + l.act2())
            .put(copyStride(w.w13, xStride))
            .put(copyStride(w.w2, actStride))
            .put(base + l.segments())
            .put(l.shrunkStride())
            .put((long) topK)
            .put((w.w13.takesInt8Rows() ? 1L : 0) + (w.w2.takesInt8Rows() ? 2L : 0));
    if (!s.isComplete()) {
      throw new AssertionError("struct moe_call has other fields");
    }
  }

  /** From one row to the next as products read them: copies, or the rows themselves. */
  private static long copyStride(PackedSide side, long stride) {
    long copies = side.copyStride(stride);
    return copies > 0 ? copies : stride;
  }

  private static long address(@Nullable MemorySegment s) {
    return s == null ? 0 : s.address();
  }

  private void findTasks() {
    units = 0;
    tasks13.count = 0;
    tasks2.count = 0;
    for (int e = 0; e < w.count; e++) {
      int from = plan.expertStart[e];
      int n = plan.expertStart[e + 1] - from;
      int parts = Math.ceilDiv(n, CallStruct.MAX_ROWS);
      for (int i = 0; i < parts; i++) {
        // Whole tiles of rows, so that only the last unit has an odd number.
        int each = Math.ceilDiv(Math.ceilDiv(n, parts), 32) * 32;
        addUnit(e, from + i * each, Math.min(each, n - i * each));
      }
    }
    int withLora = longerWithLora();
    for (int node = 0; node < mlp.team().nodes(); node++) {
      for (int first = 0, behind = 0; first < units; first = behind) {
        int e = unitExpert[first];
        while (behind < units && unitExpert[behind] == e) {
          behind++;
        }
        // Where multiplying takes longer than reading, longer tasks: the next block is fetched
        // meanwhile.
        int n = plan.expertStart[e + 1] - plan.expertStart[e];
        int longer = n > LONG_TASK_ROWS && plan.size >= w.count * LONG_TASK_ROWS ? 4 : 1;
        longer = Math.max(longer, withLora);
        addTasks(tasks13, node, first, behind, w.w13.blocks(), mlp.group13() * longer);
        addTasks(tasks2, node, first, behind, w.w2.blocks(), mlp.group2() * longer);
      }
      tasks13.behind[node] = tasks13.count;
      tasks2.behind[node] = tasks2.count;
    }
  }

  /** How many times longer tasks are because of adapters, while there are enough of them. */
  private int longerWithLora() {
    if (!lora.any13() && !lora.any2()) {
      return 1;
    }
    int experts = 0;
    for (int e = 0; e < w.count; e++) {
      experts += plan.expertStart[e + 1] > plan.expertStart[e] ? 1 : 0;
    }
    int shortest = Math.min(w.w13.blocks() / mlp.group13(), w.w2.blocks() / mlp.group2());
    return Math.clamp(
        (long) experts * shortest / ((long) TASKS_PER_THREAD * mlp.team().size()),
        1,
        LONGEST_WITH_LORA);
  }

  /** Those of a node over the weights of one expert, whose units are {@code first..behind-1}. */
  private void addTasks(Tasks tasks, int node, int first, int behind, int blocks, int group) {
    int nodes = mlp.team().nodes();
    int end = NodeShare.first(blocks, nodes, node + 1);
    for (int b = NodeShare.first(blocks, nodes, node); b < end; b += group) {
      for (int u = first; u < behind; u++) {
        tasks.add(u, b, Math.min(group, end - b));
      }
    }
  }

  private void addUnit(int e, int row, int rows) {
    if (rows <= 0) {
      return;
    }
    if (units == unitExpert.length) {
      int n = Math.max(64, 2 * units);
      unitExpert = Arrays.copyOf(unitExpert, n);
      unitRow = Arrays.copyOf(unitRow, n);
      unitRows = Arrays.copyOf(unitRows, n);
      unitSegment = Arrays.copyOf(unitSegment, n);
      unitSegments = Arrays.copyOf(unitSegments, n);
    }
    int s = plan.expertSegments[e];
    int end = plan.expertSegments[e + 1];
    while (s < end && plan.segmentEnd[s] <= row) {
      s++;
    }
    int last = s;
    while (last < end && plan.segmentStart[last] < row + rows) {
      last++;
    }
    unitExpert[units] = e;
    unitRow[units] = row;
    unitRows[units] = rows;
    unitSegment[units] = s;
    unitSegments[units++] = last - s;
  }

  private void gatherTile(int index, int member) {
    int from = index * POSITIONS_PER_TILE;
    int to = Math.min(plan.size, from + POSITIONS_PER_TILE);
    mlp.kernels()
        .gather(
            call,
            hidden,
            hiddenType,
            mlp.options().weightOnInput() ? topkWeights : null,
            chunkStart,
            from,
            to);
  }

  private void shrink13Tile(int segment, int member) {
    mlp.kernels().shrink(call, segment, false);
  }

  private void shrink2Tile(int segment, int member) {
    mlp.kernels().shrink(call, segment, true);
  }

  private void reorder(int u, boolean down) {
    Objects.checkIndex(unitExpert[u], w.count);
    Objects.checkFromIndexSize(unitRow[u], unitRows[u], plan.size);
    mlp.kernels().reorder(call, down, unitExpert[u], unitRow[u], (long) unitRow[u] + unitRows[u]);
  }

  private void product13Tile(int index, int member) {
    int u = tasks13.unit[index];
    int block = tasks13.block[index];
    int blocks = tasks13.blocks[index];
    check(u, block, blocks, w.w13.blocks());
    mlp.kernels()
        .w13(
            call,
            unitExpert[u],
            unitRow[u],
            unitRows[u],
            block,
            blocks,
            unitSegment[u],
            unitSegments[u]);
  }

  private void product2Tile(int index, int member) {
    int u = tasks2.unit[index];
    int block = tasks2.block[index];
    int blocks = tasks2.blocks[index];
    check(u, block, blocks, w.w2.blocks());
    mlp.kernels()
        .w2(
            call,
            unitExpert[u],
            unitRow[u],
            unitRows[u],
            block,
            blocks,
            unitSegment[u],
            unitSegments[u]);
  }

  /** The kernels trust what they are told, so a mistake in the plan must end here. */
  private void check(int unit, int block, int blocks, int all) {
    Objects.checkIndex(unitExpert[unit], w.count);
    Objects.checkFromIndexSize(unitRow[unit], unitRows[unit], plan.size);
    Objects.checkFromIndexSize(0, unitRows[unit], CallStruct.MAX_ROWS);
    Objects.checkFromIndexSize(block, blocks, all);
    Objects.checkFromIndexSize(unitSegment[unit], unitSegments[unit], plan.segments);
  }

  private void combineTile(int index, int member) {
    int from = index * TOKENS_PER_TILE;
    int to = Math.min(chunkTokens, from + TOKENS_PER_TILE);
    mlp.kernels()
        .combine(
            call,
            mlp.options().weightOnInput() ? null : topkWeights,
            chunkStart,
            from,
            to,
            output,
            outputType);
  }
}
