package io.moe4j.cuda.ops;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Sorts the pairs of a forward by local expert and, with LoRA, by adapter within it, and makes the
 * lists that grouped products with fused LoRA run over: tiles, shrink tiles, pages of 16 ranks of
 * each (expert, adapter) segment. {@code tile_sort.cu} in one launch where it can serve a call,
 * else {@code sort.py} in steps; the lists are the same. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class TileSort {
  /** The kernel of {@code tile_sort.cu}, by its name in the manifest. */
  static final String KERNEL = "tile_sort";

  private static final int CLEAR_BLOCK = 1024;
  private static final int PAIR_BLOCK = 256;
  private static final int FEW_PAIRS = 256;
  private static final int PLACE_PAIRS = 4096;
  private static final int FEW_EXPERTS = 128;

  /** The most local experts. */
  public static final int MAX_EXPERTS = 512;

  /**
   * Of {@code tile_sort.cu}: the most pairs of a block, and how many it gets while blocks are left.
   */
  private static final int BLOCK_PAIRS = 8192;

  private static final int FEW_BLOCK_PAIRS = 2048;
  private static final int MOST_BLOCKS = 8;

  /** Shared memory that every card of 8.0 and later has, and what is asked for at most on 9.0. */
  static final int SHARED_BYTES = 96 << 10;

  static final int HOPPER_SHARED_BYTES = 200 << 10;

  private final ExpertKernels kernels;

  /**
   * @param kernels where they are
   */
  public TileSort(ExpertKernels kernels) {
    this.kernels = kernels;
  }

  /**
   * Ids of a BATCHED call: row r of expert e is a pair of e, or none past the count. With LoRA the
   * slots of the rows as well, -1 past the count.
   *
   * @param b the forward; its ids, and with {@code mapping} its mapping, are overwritten
   * @param counts int32 {@code [E]}
   * @param mapping address of the caller's slots, undefined past the count; 0 without LoRA
   * @param rows of each expert
   */
  public void batchedIds(PairBatch b, @Nullable Tensor counts, long mapping, int rows) {
    kernels
        .get("batched_ids")
        .begin()
        .pointer(counts)
        .pointer(mapping)
        .pointer(b.ids())
        .pointer(b.mapping())
        .i32(mapping == 0 ? 0 : 1)
        .i32(b.pairs())
        .i32(rows)
        .launch(b.stream(), Math.ceilDiv(b.pairs(), PAIR_BLOCK));
  }

  /**
   * Sorts.
   *
   * @param b the forward
   * @param lists overwritten
   * @param base address of the workspace they are in
   * @param tileRows rows of a GEMM tile
   * @param shrinks how the lists for shrinks are made; without LoRA not looked at
   */
  public void run(PairBatch b, TileLists lists, long base, int tileRows, ShrinkPlan shrinks) {
    Call c = new Call(b, lists, base, tileRows, shrinks.rows(), shrinks.counters(b));
    int blocks = blocks(b.pairs(), kernels.hopper());
    long shared = sharedBytes(Math.ceilDiv(b.pairs(), blocks), b.experts(), b.slots());
    if (b.pairs() <= blocks * BLOCK_PAIRS
        && shared <= (kernels.hopper() ? HOPPER_SHARED_BYTES : SHARED_BYTES)) {
      inOneLaunch(c, blocks, (int) shared);
    } else {
      inSteps(c);
    }
  }

  /**
   * Copies tokens into the order of the sort, for products that read whole tiles of rows.
   *
   * @param b the forward
   * @param hidden address of BF16 {@code [T, H]}, 16-byte aligned
   * @param posOf address of {@link TileLists#posOf}
   * @param sorted address of BF16 {@code [P, H]}, overwritten
   * @param width {@code H}
   */
  public void permute(PairBatch b, long hidden, long posOf, long sorted, int width) {
    kernels
        .get(
            "permute",
            "type",
            SharedKernels.name(DType.BF16),
            "width",
            width <= CLEAR_BLOCK ? "1024" : "4096")
        .begin()
        .pointer(hidden)
        .pointer(posOf)
        .pointer(sorted)
        .i32(width)
        .i32(b.topK())
        .launch(b.stream(), b.tokens());
  }

  /** One sort. */
  private record Call(
      PairBatch batch, TileLists lists, long base, int tileRows, int shrinkRows, int counters) {}

  /**
   * {@return blocks that share the pairs in {@code tile_sort.cu}}
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
   * {@return dynamic shared memory of a block of {@code tile_sort.cu}, in bytes}
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

  private void inOneLaunch(Call c, int blocks, int shared) {
    PairBatch b = c.batch();
    TileLists at = c.lists();
    kernels
        .get(KERNEL, "lora", b.lora() ? "1" : "0")
        .begin()
        .cluster(blocks)
        .sharedBytes(shared)
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.mapping())
        .pointer(b.table())
        .pointer(c.base() + at.pairs())
        .pointer(c.base() + at.posOf())
        .pointer(c.base() + at.segOf())
        .pointer(c.base() + at.tiles())
        .pointer(c.base() + at.shrinkTiles())
        .pointer(c.base() + at.nums())
        .pointer(c.base() + at.rowCount())
        .pointer(c.base() + at.pages13First())
        .pointer(c.base() + at.pages13Second())
        .pointer(c.base() + at.pages13Words())
        .pointer(c.base() + at.pages2First())
        .pointer(c.base() + at.pages2Words())
        .pointer(c.base() + at.arrived())
        .i32(b.pairs())
        .i32(b.topK())
        .i32(b.globalExperts())
        .i32(b.experts())
        .i32(b.slots() + 1)
        .i32(c.tileRows())
        .i32(c.shrinkRows())
        .i32(c.counters())
        .launch(b.stream(), blocks);
  }

  private void inSteps(Call c) {
    PairBatch b = c.batch();
    TileLists at = c.lists();
    String lora = b.lora() ? "1" : "0";
    int keys = b.slots() + 1;
    int zero = at.zeroInts + c.counters();
    kernels
        .get("clear")
        .begin()
        .pointer(c.base() + at.zero)
        .i32(zero)
        .launch(b.stream(), Math.ceilDiv(zero, CLEAR_BLOCK));
    kernels
        .get("count", "lora", lora)
        .begin()
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.mapping())
        .pointer(b.table())
        .pointer(c.base() + at.zero)
        .pointer(c.base() + at.stats)
        .pointer(c.base() + at.keyOf)
        .pointer(c.base() + at.rankOf)
        .i32(b.hasMap())
        .i32(b.pairs())
        .i32(b.topK())
        .i32(b.globalExperts())
        .i32(b.experts())
        .i32(keys)
        .i32(c.shrinkRows())
        .launch(b.stream(), Math.ceilDiv(b.pairs(), PAIR_BLOCK));
    place(c, lora, keys);
    if (b.pairs() > PLACE_PAIRS) {
      kernels
          .get("scatter", "lora", lora)
          .begin()
          .pointer(b.table())
          .pointer(c.base() + at.zero)
          .pointer(c.base() + at.keyOf)
          .pointer(c.base() + at.rankOf)
          .pointer(c.base() + at.off)
          .pointer(c.base() + at.tileOff)
          .pointer(c.base() + at.segId)
          .pointer(c.base() + at.shrinkOff)
          .pointer(c.base() + at.segPages13)
          .pointer(c.base() + at.segPages2)
          .pointer(c.base() + at.pairs())
          .pointer(c.base() + at.posOf())
          .pointer(c.base() + at.tiles())
          .pointer(c.base() + at.shrinkTiles())
          .pointer(c.base() + at.segOf())
          .i32(b.pairs())
          .i32(keys)
          .i32(c.tileRows())
          .i32(c.shrinkRows())
          .launch(b.stream(), Math.ceilDiv(b.pairs(), PAIR_BLOCK));
    }
  }

  private void place(Call c, String lora, int keys) {
    PairBatch b = c.batch();
    TileLists at = c.lists();
    boolean few = b.experts() <= FEW_EXPERTS;
    String slots = !b.lora() ? "1" : keys <= 4 && few ? "4" : keys <= 16 || !few ? "16" : "64";
    String pairs = b.pairs() > PLACE_PAIRS ? "0" : b.pairs() <= FEW_PAIRS ? "256" : "1024";
    kernels
        .get("place", "lora", lora, "experts", few ? "128" : "512", "pairs", pairs, "slots", slots)
        .begin()
        .pointer(b.table())
        .pointer(c.base() + at.zero)
        .pointer(c.base() + at.stats)
        .pointer(c.base() + at.keyOf)
        .pointer(c.base() + at.rankOf)
        .pointer(c.base() + at.off)
        .pointer(c.base() + at.tileOff)
        .pointer(c.base() + at.segId)
        .pointer(c.base() + at.shrinkOff)
        .pointer(c.base() + at.segPages13)
        .pointer(c.base() + at.segPages2)
        .pointer(c.base() + at.pages13First())
        .pointer(c.base() + at.pages13Second())
        .pointer(c.base() + at.pages13Words())
        .pointer(c.base() + at.pages2First())
        .pointer(c.base() + at.pages2Words())
        .pointer(c.base() + at.nums())
        .pointer(c.base() + at.pairs())
        .pointer(c.base() + at.posOf())
        .pointer(c.base() + at.tiles())
        .pointer(c.base() + at.shrinkTiles())
        .pointer(c.base() + at.segOf())
        .i32(b.pairs())
        .i32(b.experts())
        .i32(keys)
        .i32(c.tileRows())
        .i32(c.shrinkRows())
        .launch(b.stream(), b.experts());
  }
}
