package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;

/**
 * A batch's tokens routed by the team, each by one thread. Thread-safe like {@link GroupedMlp}.
 */
final class RouteRows {
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final int TOKENS_PER_TILE = 8;

  private final ThreadTeam team;
  private final Supplier<Router> make;
  private final ConcurrentLinkedQueue<Pass> pool = new ConcurrentLinkedQueue<>();

  /**
   * @param make a thread's scratch
   */
  RouteRows(ThreadTeam team, Supplier<Router> make) {
    this.team = team;
    this.make = make;
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
    private MemorySegment logits = NONE;
    private @Nullable MemorySegment tokenIds;
    private MemorySegment ids = NONE;
    private MemorySegment weights = NONE;
    private int tokens;

    void run(Tensor logits, @Nullable Tensor tokenIds, Tensor topkIds, Tensor topkWeights) {
      this.logits = logits.segment();
      this.tokenIds = tokenIds == null ? null : tokenIds.segment();
      ids = topkIds.segment();
      weights = topkWeights.segment();
      tokens = Math.toIntExact(logits.size(0));
      team.run(region, Math.ceilDiv(tokens, TOKENS_PER_TILE));
    }

    /** Lets go of everything the caller owns. */
    void clear() {
      logits = NONE;
      tokenIds = null;
      ids = NONE;
      weights = NONE;
    }

    private void tile(int index, int member) {
      Router r = routers[member];
      if (r == null) {
        r = make.get();
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
