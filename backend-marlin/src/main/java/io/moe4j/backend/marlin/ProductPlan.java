package io.moe4j.backend.marlin;

/**
 * How one grouped product is launched.
 *
 * @param kind {@code narrow}, {@code wide} or {@code single}, the kernel
 * @param rows rows of a tile of x; 1 for single
 * @param warps of a block that share the contraction; of wide: warpgroups, 1 or (height 32) 2
 * @param phase chunks of x in shared memory at a time; 1 for wide and single
 * @param outputs of a block, of each matrix
 * @param sharedBytes of a block
 */
record ProductPlan(String kind, int rows, int warps, int phase, int outputs, int sharedBytes) {
  /** What a block of narrow asks for at most: every card has so much. */
  static final int NARROW_SHARED_BYTES = 99 << 10;

  /** What a block of wide asks for at most, on 9.0. */
  static final int WIDE_SHARED_BYTES = 227 << 10;

  /** What a block of single asks for at most, on 9.0: two of them fit. */
  static final int SINGLE_SHARED_BYTES = 112 << 10;

  /** Warps of a block. */
  static final int WARPS = 8;

  /** Warps of a block of single that sums: each has one expert of a token at most. */
  static final int SUM_WARPS = 16;

  /** The height of wide whose warpgroups can share the contraction. */
  static final int SPLIT_ROWS = 32;

  private static final int CHUNK = PackedLayout.CHUNK;
  private static final int ELEMENT = 2;
  private static final int ALIGNMENT = 128;
  private static final int STAGE_ALIGNMENT = 1024;

  /**
   * For x and what begins the sums of its groups: three blocks of int4 in groups of 128 share a
   * multiprocessor.
   */
  private static final int X_BYTES = 35_200;

  /**
   * Up to so many rows narrow multiplies symmetric integers with a bias, see {@code narrow.cuh}.
   */
  private static final int BIASED_ROWS = 16;

  /** The height of wide whose blocks are one warpgroup; a multiprocessor holds three. */
  static final int MIDDLE = 80;

  /** Rows of the weights of a warpgroup of wide. */
  static final int GROUP_OUTPUTS = 128;

  /** The height of wide of which a multiprocessor holds one block. */
  static final int TALL = 160;

  /** What the end of a warpgroup of wide takes, see {@code wide.cuh}. */
  private static final int END_BYTES = 20 << 10;

  /** So much shared memory a block that a multiprocessor of 9.0 holds two of them and no more. */
  private static final int TWO_BLOCKS_BYTES = 76 << 10;

  /**
   * Bytes of two tiles of weights with their ratios and zero points, {@code Stream::SLOT_BYTES} in
   * {@code tile.cuh}.
   */
  private static int slotBytes(PackedLayout w) {
    return codeBytes(w) + 2 * w.groupsAChunk() * 128 * (w.zeroPoints() ? 2 : 1);
  }

  /** The same of wide, which copies no ratios where a chunk has one group. */
  private static int wideSlotBytes(PackedLayout w) {
    return w.groupsAChunk() == 1 ? codeBytes(w) : slotBytes(w);
  }

  private static int codeBytes(PackedLayout w) {
    return 2 * CHUNK * PackedLayout.TILE_ROWS * w.code().bits() / Byte.SIZE;
  }

  /** Chunks that a warp of narrow multiplies at a time. */
  static int unit(PackedLayout w, int rows) {
    return w.code().bits() == 4 && rows == 8 && w.groupsAChunk() < 4 ? 2 : 1;
  }

  /** Such units that a warp has slots for. */
  private static int stages(PackedLayout w, int rows) {
    return w.code().bits() == 4 && unit(w, rows) == 1 ? 3 : 2;
  }

  /** Bytes a chunk of what its sums begin with, where codes are multiplied with a bias. */
  private static int biasBytes(PackedLayout w, int rows, boolean naive) {
    boolean biased = w.code().isInteger() && !w.zeroPoints() && rows <= BIASED_ROWS;
    return biased ? Math.max(1, w.groupsAChunk()) * (naive ? 16 : rows * 8) : 0;
  }

  /**
   * {@return a launch of narrow}
   *
   * @param w the weights
   * @param gated whether gate and up are computed side by side
   * @param rows of a tile
   * @param naive whether a tile is a single row
   * @param wanted warps that share the contraction, a power of two up to 8; fewer are taken where x
   *     would not fit otherwise
   * @param rank padded to a page; 0 without LoRA
   */
  static ProductPlan narrow(
      PackedLayout w, boolean gated, int rows, boolean naive, int wanted, int rank) {
    int unit = unit(w, rows);
    int slots = WARPS * stages(w, rows) * unit * slotBytes(w);
    int height = naive ? 1 : rows;
    int biases = biasBytes(w, rows, naive);
    int chunk = height * CHUNK * ELEMENT + biases;
    int ends = height * 8 * ELEMENT;
    int room = Math.min(X_BYTES, NARROW_SHARED_BYTES - slots - STAGE_ALIGNMENT);
    int warps = wanted;
    while (warps > 2 && ends + warps * unit * chunk > room) {
      warps /= 2;
    }
    int turn = warps * unit;
    int fit = (room - ends) / chunk / turn * turn;
    int phase = Math.min(up(Math.toIntExact(w.chunks()), unit), Math.max(turn, fit));
    int x = up(height * (phase * CHUNK + 8) * ELEMENT, ALIGNMENT) + up(phase * biases, ALIGNMENT);
    int shared = Math.max(x + slots, Math.max(rows * 1024, naive ? 8 * rank : 0));
    return new ProductPlan(
        MarlinKernels.NARROW, rows, warps, phase, WARPS / warps * (gated ? 16 : 32), shared);
  }

  /**
   * {@return a launch of wide}
   *
   * @param w the weights
   * @param gated whether gate and up are computed side by side
   * @param rows of a tile
   * @param lora whether there are adapters
   * @param split whether the warpgroups share the contraction; for {@link #SPLIT_ROWS}
   */
  static ProductPlan wide(PackedLayout w, boolean gated, int rows, boolean lora, boolean split) {
    int groups = rows == MIDDLE ? 1 : 2;
    int x = rows * CHUNK * ELEMENT * (rows == SPLIT_ROWS ? 2 : 1);
    int stage = up(x + groups * WARPS / 2 * wideSlotBytes(w), STAGE_ALIGNMENT);
    int most = (rows >= TALL ? 6 : 5) - (w.code().bits() == 4 ? 0 : 1);
    int stages = Math.max(3, Math.min(most, (wideRoom(rows) << 10) / stage));
    int step = groups == 1 ? 1 : rows >= TALL ? 4 : 2; // pages
    int pages = lora ? 3 * step * (groups * GROUP_OUTPUTS * 32 + rows * 64) : 0;
    int shared = Math.max(stages * stage, Math.max(groups * END_BYTES, pages));
    int parts = split ? 2 : 1;
    int outputs = groups * (gated ? GROUP_OUTPUTS / 2 : GROUP_OUTPUTS) / parts;
    return new ProductPlan(MarlinKernels.WIDE, rows, parts, 1, outputs, shared);
  }

  /** KiB for the stages of a block; one more of each block is the system's. */
  private static int wideRoom(int rows) {
    return switch (rows) {
      case MIDDLE -> 228 / 3 - 1;
      case TALL -> 222;
      default -> 110;
    };
  }

  /**
   * {@return a launch of single: w13 with a gate, or w2 with the sum}
   *
   * @param w the weights
   * @param warps that share the contraction, a power of two up to 8; each output of w2 is a whole
   *     block's
   * @param sums whether w2
   */
  static ProductPlan single(PackedLayout w, int warps, boolean sums) {
    int blockWarps = sums ? SUM_WARPS : WARPS;
    int stages = (w.code().bits() == 4 ? 4 : 3) - (sums ? 1 : 0);
    int x = (sums ? 2 : 1) * CHUNK * ELEMENT;
    int shared = blockWarps * (stages * (slotBytes(w) + x) + 2 * 32 * Float.BYTES);
    return new ProductPlan(
        MarlinKernels.SINGLE,
        1,
        warps,
        1,
        sums ? PackedLayout.TILE_ROWS : WARPS / warps * PackedLayout.TILE_ROWS,
        shared);
  }

  /** {@return the same, of which a multiprocessor holds two blocks at most} */
  ProductPlan twoBlocks() {
    return new ProductPlan(
        kind, rows, warps, phase, outputs, Math.max(sharedBytes, TWO_BLOCKS_BYTES));
  }

  /** Blocks of narrow that a multiprocessor of 9.0 holds, as compiled. */
  static int residentBlocks(int rows) {
    return rows == 8 ? 3 : rows <= 16 ? 2 : 1;
  }

  private static int up(int bytes, int unit) {
    return Math.ceilDiv(bytes, unit) * unit;
  }
}
