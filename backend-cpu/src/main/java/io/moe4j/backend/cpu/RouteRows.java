package io.moe4j.backend.cpu;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.ffi.NativeBlock;
import io.moe4j.backend.cpu.ffi.RouteStruct;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Objects;
import java.util.concurrent.ConcurrentLinkedQueue;
import org.jspecify.annotations.Nullable;

/**
 * A batch's tokens routed by the team, each by one thread: in C where {@link RouteStruct} knows
 * how, by {@link Router} otherwise. Thread-safe like {@link GroupedMlp}.
 */
final class RouteRows {
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final int TOKENS_PER_TILE = 16;

  /**
   * How tokens choose.
   *
   * @param config scores, groups and weights
   * @param choices experts, zero experts included
   * @param topK how many a token has
   * @param correctionBias one per choice, or empty
   * @param expertScale one per choice, or empty
   * @param tokenExperts {@code [V, K]}, or empty
   */
  @SuppressWarnings("ArrayRecordComponent") // nobody compares rules
  record Rule(
      RoutingConfig config,
      int choices,
      int topK,
      float[] correctionBias,
      float[] expertScale,
      int[] tokenExperts) {}

  private final Rule rule;
  private final ThreadTeam team;
  private final @Nullable NativeBlock c;
  private final @Nullable MemorySegment how;
  private final @Nullable MemorySegment bias;
  private final @Nullable MemorySegment scale;
  private final ConcurrentLinkedQueue<Pass> pool = new ConcurrentLinkedQueue<>();

  RouteRows(Rule rule, BlockKernels with, Arena arena) {
    this.rule = rule;
    team = with.team();
    c = with.c();
    how =
        c == null
            ? null
            : RouteStruct.of(rule.config(), rule.choices(), rule.topK(), arena).orElse(null);
    bias = copy(rule.correctionBias(), rule.choices(), arena);
    scale = copy(rule.expertScale(), rule.choices(), arena);
  }

  private static @Nullable MemorySegment copy(float[] values, int count, Arena arena) {
    if (values.length == 0) {
      return null;
    }
    Objects.checkFromIndexSize(0, count, values.length);
    return arena.allocateFrom(ValueLayout.JAVA_FLOAT, values);
  }

  /**
   * Routes all tokens.
   *
   * @param logits F32 {@code [T, E]}
   * @param tokenIds int32 {@code [T]}, or null where the scores choose
   * @param topkIds int32 {@code [T, K]}, overwritten
   * @param topkWeights F32 {@code [T, K]}, overwritten
   */
  void run(Tensor logits, @Nullable Tensor tokenIds, Tensor topkIds, Tensor topkWeights) {
    Pass p = pool.poll();
    if (p == null) {
      p = new Pass();
    }
    try {
      p.run(logits, tokenIds, topkIds, topkWeights);
    } finally {
      p.clear();
      pool.add(p);
    }
  }

  private final class Pass {
    private final @Nullable Router[] routers = new Router[team.size()];
    private final ThreadTeam.Region region = this::tile;
    private final ThreadTeam.Region regionInC = this::tileInC;
    private MemorySegment logits = NONE;
    private @Nullable MemorySegment tokenIds;
    private MemorySegment ids = NONE;
    private MemorySegment weights = NONE;
    private int tokens;

    void run(Tensor logits, @Nullable Tensor tokenIds, Tensor topkIds, Tensor topkWeights) {
      tokens = Math.toIntExact(logits.size(0));
      int tiles = Math.ceilDiv(tokens, TOKENS_PER_TILE);
      MemorySegment toIds = topkIds.segment();
      MemorySegment toWeights = topkWeights.segment();
      if (how == null) {
        this.logits = logits.segment();
        this.tokenIds = tokenIds == null ? null : tokenIds.segment();
        ids = toIds;
        weights = toWeights;
        team.run(region, tiles);
        return;
      }
      this.logits = FileMemory.read(logits);
      ids = FileMemory.standIn(toIds);
      weights = FileMemory.standIn(toWeights);
      Objects.checkFromIndexSize(0, 4L * tokens * rule.choices(), this.logits.byteSize());
      Objects.checkFromIndexSize(0, 4L * tokens * rule.topK(), ids.byteSize());
      Objects.checkFromIndexSize(0, 4L * tokens * rule.topK(), weights.byteSize());
      team.run(regionInC, tiles);
      FileMemory.writeBack(ids, toIds);
      FileMemory.writeBack(weights, toWeights);
    }

    /** Lets go of everything the caller owns. */
    void clear() {
      logits = NONE;
      tokenIds = null;
      ids = NONE;
      weights = NONE;
    }

    private void tileInC(int index, int member) {
      int from = index * TOKENS_PER_TILE;
      int to = Math.min(tokens, from + TOKENS_PER_TILE);
      Objects.requireNonNull(c)
          .route(Objects.requireNonNull(how), logits, bias, scale, ids, weights, from, to);
    }

    private void tile(int index, int member) {
      Router r = routers[member];
      if (r == null) {
        r =
            new Router(
                rule.config(),
                rule.choices(),
                rule.topK(),
                rule.correctionBias(),
                rule.expertScale(),
                rule.tokenExperts());
        routers[member] = r;
      }
      int end = Math.min(tokens, (index + 1) * TOKENS_PER_TILE);
      for (int t = index * TOKENS_PER_TILE; t < end; t++) {
        int id = tokenIds == null ? -1 : tokenIds.getAtIndex(I32, t);
        r.route(logits, t, id, ids, weights);
      }
    }
  }
}
