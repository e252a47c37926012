package io.moe4j.backend.triton;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/** Launches the sort: {@code sort.cu} where it can serve a call, else {@code sort.py} in steps. */
final class SortLaunches {
  private static final int CLEAR_BLOCK = 1024;
  private static final int PAIR_BLOCK = 256;
  private static final int FEW_PAIRS = 256;
  private static final int PLACE_PAIRS = 4096;
  private static final int FEW_EXPERTS = 128;
  static final int MAX_EXPERTS = 512;

  /** Of {@code sort.cu}: the most pairs of a block, and how many it gets while blocks are left. */
  private static final int BLOCK_PAIRS = 8192;

  private static final int FEW_BLOCK_PAIRS = 2048;
  private static final int MOST_BLOCKS = 8;

  /** Shared memory that every card of 8.0 and later has, and what is asked for at most on 9.0. */
  static final int SHARED_BYTES = 96 << 10;

  static final int HOPPER_SHARED_BYTES = 200 << 10;

  private final TritonKernels kernels;
  private final Widths widths;
  private final int experts;

  SortLaunches(TritonKernels kernels, Widths widths, int experts) {
    this.kernels = kernels;
    this.widths = widths;
    this.experts = experts;
  }

  /**
   * Ids of a BATCHED call: row r of expert e is a pair of e, or none past the count. With LoRA the
   * slots of the rows as well, -1 past the count.
   *
   * @param mapping the caller's slots, undefined past the count; 0 without LoRA
   */
  void batchedIds(Forward f, @Nullable Tensor counts, long mapping, int rows) {
    kernels
        .get("batched_ids")
        .begin()
        .pointer(counts)
        .pointer(mapping)
        .pointer(f.ids())
        .pointer(f.mapping())
        .i32(mapping == 0 ? 0 : 1)
        .i32(f.pairs())
        .i32(rows)
        .launch(f.stream(), Math.ceilDiv(f.pairs(), PAIR_BLOCK));
  }

  /** Sorts the pairs and makes the lists; nothing to do where every pair is a tile of its own. */
  void run(Forward f) {
    if (f.plan().naive()) {
      return;
    }
    TilePlan plan = f.plan();
    int counters = 0;
    if (plan.shrink13().splits() > 1 || plan.shrink2().splits() > 1) {
      counters =
          f.shrinkTiles(experts) * Math.max(plan.shrink13().chunks(), plan.shrink2().chunks());
    }
    int blocks = blocks(f.pairs(), kernels.hopper());
    long shared = sharedBytes(Math.ceilDiv(f.pairs(), blocks), experts, f.slots());
    if (f.pairs() <= blocks * BLOCK_PAIRS
        && shared <= (kernels.hopper() ? HOPPER_SHARED_BYTES : SHARED_BYTES)) {
      inOneLaunch(f, counters, blocks, (int) shared);
    } else {
      inSteps(f, counters);
    }
    if (plan.permute()) {
      permute(f);
    }
  }

  /**
   * {@return blocks that share the pairs in {@code sort.cu}}
   *
   * @param pairs of the forward
   * @param clusters whether the card has clusters; without there is one block
   */
  static int blocks(int pairs, boolean clusters) {
    int blocks = 1;
    while (clusters && blocks < MOST_BLOCKS && pairs > blocks * FEW_BLOCK_PAIRS) {
      blocks *= 2;
    }
    return blocks;
  }

  /**
   * {@return dynamic shared memory of a block of {@code sort.cu}, in bytes}
   *
   * @param pairs of the block
   * @param experts local
   * @param slots 0 without LoRA
   */
  static long sharedBytes(int pairs, int experts, int slots) {
    long keys = (long) experts * (slots + 1);
    long perKey = slots > 0 ? 6 : 3;
    return Long.BYTES * (long) slots * SlotTable.WIDTH
        + Integer.BYTES * (perKey * keys + 1 + experts + pairs);
  }

  private void inOneLaunch(Forward f, int counters, int blocks, int shared) {
    ForwardLayout at = f.at();
    kernels
        .get("sort", "lora", f.lora() ? "1" : "0")
        .begin()
        .cluster(blocks)
        .sharedBytes(shared)
        .pointer(f.ids())
        .pointer(f.expertMap())
        .pointer(f.mapping())
        .pointer(f.table())
        .pointer(f.address(at.pairs))
        .pointer(f.address(at.posOf))
        .pointer(f.address(at.segOf))
        .pointer(f.address(at.tiles))
        .pointer(f.address(at.shrinkTiles))
        .pointer(f.address(at.nums))
        .pointer(f.address(at.off) + (long) Integer.BYTES * experts * (f.slots() + 1))
        .pointer(f.address(at.pages13a))
        .pointer(f.address(at.pages13b))
        .pointer(f.address(at.pages13m))
        .pointer(f.address(at.pages2a))
        .pointer(f.address(at.pages2m))
        .pointer(f.address(at.arrived))
        .i32(f.pairs())
        .i32(f.topK())
        .i32(f.globalExperts())
        .i32(experts)
        .i32(f.slots() + 1)
        .i32(f.plan().tileRows())
        .i32(f.plan().shrinkRows())
        .i32(counters)
        .launch(f.stream(), blocks);
  }

  private void inSteps(Forward f, int counters) {
    ForwardLayout at = f.at();
    String lora = f.lora() ? "1" : "0";
    int keys = f.slots() + 1;
    TilePlan plan = f.plan();
    int zero = at.zeroInts + counters;
    kernels
        .get("clear")
        .begin()
        .pointer(f.address(at.zero))
        .i32(zero)
        .launch(f.stream(), Math.ceilDiv(zero, CLEAR_BLOCK));
    kernels
        .get("count", "lora", lora)
        .begin()
        .pointer(f.ids())
        .pointer(f.expertMap())
        .pointer(f.mapping())
        .pointer(f.table())
        .pointer(f.address(at.zero))
        .pointer(f.address(at.stats))
        .pointer(f.address(at.keyOf))
        .pointer(f.address(at.rankOf))
        .i32(f.hasMap())
        .i32(f.pairs())
        .i32(f.topK())
        .i32(f.globalExperts())
        .i32(experts)
        .i32(keys)
        .i32(plan.shrinkRows())
        .launch(f.stream(), Math.ceilDiv(f.pairs(), PAIR_BLOCK));
    place(f, lora, keys);
    if (f.pairs() > PLACE_PAIRS) {
      kernels
          .get("scatter", "lora", lora)
          .begin()
          .pointer(f.table())
          .pointer(f.address(at.zero))
          .pointer(f.address(at.keyOf))
          .pointer(f.address(at.rankOf))
          .pointer(f.address(at.off))
          .pointer(f.address(at.tileOff))
          .pointer(f.address(at.segId))
          .pointer(f.address(at.shrinkOff))
          .pointer(f.address(at.segPages13))
          .pointer(f.address(at.segPages2))
          .pointer(f.address(at.pairs))
          .pointer(f.address(at.posOf))
          .pointer(f.address(at.tiles))
          .pointer(f.address(at.shrinkTiles))
          .pointer(f.address(at.segOf))
          .i32(f.pairs())
          .i32(keys)
          .i32(plan.tileRows())
          .i32(plan.shrinkRows())
          .launch(f.stream(), Math.ceilDiv(f.pairs(), PAIR_BLOCK));
    }
  }

  private void permute(Forward f) {
    int hidden = widths.hidden();
    kernels
        .get(
            "permute",
            "type",
            TritonKernels.type(DType.BF16),
            "width",
            hidden <= CLEAR_BLOCK ? "1024" : "4096")
        .begin()
        .pointer(f.hidden())
        .pointer(f.address(f.at().posOf))
        .pointer(f.address(f.at().sorted))
        .i32(hidden)
        .i32(f.topK())
        .launch(f.stream(), f.tokens());
  }

  private void place(Forward f, String lora, int keys) {
    ForwardLayout at = f.at();
    boolean few = experts <= FEW_EXPERTS;
    String slots = !f.lora() ? "1" : keys <= 4 && few ? "4" : keys <= 16 || !few ? "16" : "64";
    String pairs = f.pairs() > PLACE_PAIRS ? "0" : f.pairs() <= FEW_PAIRS ? "256" : "1024";
    kernels
        .get("place", "lora", lora, "experts", few ? "128" : "512", "pairs", pairs, "slots", slots)
        .begin()
        .pointer(f.table())
        .pointer(f.address(at.zero))
        .pointer(f.address(at.stats))
        .pointer(f.address(at.keyOf))
        .pointer(f.address(at.rankOf))
        .pointer(f.address(at.off))
        .pointer(f.address(at.tileOff))
        .pointer(f.address(at.segId))
        .pointer(f.address(at.shrinkOff))
        .pointer(f.address(at.segPages13))
        .pointer(f.address(at.segPages2))
        .pointer(f.address(at.pages13a))
        .pointer(f.address(at.pages13b))
        .pointer(f.address(at.pages13m))
        .pointer(f.address(at.pages2a))
        .pointer(f.address(at.pages2m))
        .pointer(f.address(at.nums))
        .pointer(f.address(at.pairs))
        .pointer(f.address(at.posOf))
        .pointer(f.address(at.tiles))
        .pointer(f.address(at.shrinkTiles))
        .pointer(f.address(at.segOf))
        .i32(f.pairs())
        .i32(experts)
        .i32(keys)
        .i32(f.plan().tileRows())
        .i32(f.plan().shrinkRows())
        .launch(f.stream(), experts);
  }
}
