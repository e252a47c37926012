package io.moe4j.lora.cuda;

/**
 * How one call is launched: a pure function of sizes.
 *
 * @param path not {@link LoraPath#AUTO}
 * @param sorted whether pairs are sorted into tiles; otherwise a tile is a pair
 * @param tileRows most rows of a tile: 16 or 32
 * @param tiles no routing gives more
 * @param cluster blocks that share a tile's contraction, 1 to 8
 * @param parts parts of y's columns, each with blocks of its own
 * @param splits parts of the contraction of a separate shrink
 * @param rankTiles blocks of 8 ranks that the kernel holds: 4, 8 or 16
 * @param columns ranks of a row that the launch has room for
 * @param chunks groups of {@code rankTiles} in a separate shrink
 * @param sharedBytes of the one-shot kernel, or of the expand
 * @param shrinkSharedBytes of a separate shrink
 */
record LaunchPlan(
    LoraPath path,
    boolean sorted,
    int tileRows,
    int tiles,
    int cluster,
    int parts,
    int splits,
    int rankTiles,
    int columns,
    int chunks,
    int sharedBytes,
    int shrinkSharedBytes) {
  static final int ONE_SHOT_COLUMNS = 128;
  private static final int WARPS = 8;
  private static final int MAX_CLUSTER = 8;
  private static final int MAX_SPLITS = 8;
  private static final int RANK_TILE = 8;
  private static final int STEP = 32;
  private static final int GROUP = 32;
  private static final int FEW_PAIRS = 16;
  private static final int ROWS_OF_SMALL_TILES = 20;
  private static final int NARROW = 32;
  private static final int WIDE_GROUPS = 384;
  private static final double SORT_MICROS = 5;
  private static final double BYTES_PER_MICRO = 2e6;

  /**
   * The card's part in it.
   *
   * @param multiprocessors how many
   * @param sharedBytes most that a block may have
   * @param clusters whether blocks can form clusters
   */
  record Card(int multiprocessors, int sharedBytes, boolean clusters) {}

  /**
   * The call's.
   *
   * @param pairs rows of y
   * @param experts that factors tell apart, 1 = none
   * @param adapters slots in use
   * @param slots all slots: a captured launch must have room for adapters that come later
   * @param columns most ranks of a row of all targets together, each padded to 16
   * @param in width read
   * @param out width written by one target
   * @param slices targets, 1 or 2
   * @param interleaved whether their columns alternate
   */
  record Problem(
      int pairs,
      int experts,
      int adapters,
      int slots,
      int columns,
      int in,
      int out,
      int slices,
      boolean interleaved) {
    private int groups() {
      return interleaved && slices > 1
          ? Math.ceilDiv(2 * out, GROUP)
          : slices * Math.ceilDiv(out, GROUP);
    }

    private long mostSegments() {
      return Math.min(pairs, (long) experts * slots);
    }
  }

  /**
   * Chooses.
   *
   * @param p pairs and columns at least 1
   * @param card where
   * @param wish {@link LoraPath#AUTO}, or the path to take where it can serve; {@link
   *     LoraPath#GENERAL} is no business of this
   * @return the plan; {@link LoraPath#GENERAL} where the fast kernels have too little shared memory
   */
  static LaunchPlan of(Problem p, Card card, LoraPath wish) {
    boolean sort = wish == LoraPath.SMALL_BATCH ? false : sorted(p, wish);
    int rows = sort ? tileRows(p) : 16;
    // Ranks of a tile lie in shared memory, twice 16 bits each.
    while (rows > 16 && expandBytes(rows, p.columns) > card.sharedBytes) {
      rows /= 2;
    }
    if (expandBytes(rows, p.columns) > card.sharedBytes) {
      return general();
    }
    int held = p.columns <= 4 * RANK_TILE ? 4 : p.columns <= 8 * RANK_TILE ? 8 : 16;
    long expected = expectedTiles(p, sort ? rows : 1);
    boolean oneShot =
        p.columns <= ONE_SHOT_COLUMNS
            && oneShotBytes(rows, held * RANK_TILE) <= card.sharedBytes
            && (wish == LoraPath.AUTO
                ? oneShotPays(p, card, expected)
                : wish != LoraPath.TWO_KERNELS);
    int tiles = sort ? maxTiles(p, rows) : p.pairs;
    int target = 2 * card.multiprocessors;
    int steps = Math.ceilDiv(p.in, STEP);
    int groups = p.groups();
    if (oneShot) {
      int cluster = 1;
      while (card.clusters
          && cluster < MAX_CLUSTER
          && expected * cluster * 2 <= target
          && cluster * 2 <= steps) {
        cluster *= 2;
      }
      int parts = 1;
      while (parts < 8
          && expected * cluster * parts * 2 <= card.multiprocessors
          && groups >= 8 * cluster * parts) {
        parts *= 2;
      }
      return new LaunchPlan(
          sort ? LoraPath.ONE_SHOT : LoraPath.SMALL_BATCH,
          sort,
          rows,
          tiles,
          cluster,
          parts,
          1,
          held,
          held * RANK_TILE,
          1,
          oneShotBytes(rows, held * RANK_TILE),
          0);
    }
    int rankTiles = p.columns <= 4 * RANK_TILE ? 4 : 16;
    int chunks = Math.ceilDiv(p.columns, rankTiles * RANK_TILE);
    int splits = 1;
    while (splits < MAX_SPLITS
        && expected * splits * chunks * 2 <= target
        && splits * 16 <= steps) {
      splits *= 2;
    }
    int parts = 1;
    while (parts < 16 && expected * parts * 2 <= 2L * target && parts * 16 <= groups) {
      parts *= 2;
    }
    return new LaunchPlan(
        LoraPath.TWO_KERNELS,
        sort,
        rows,
        tiles,
        1,
        parts,
        splits,
        rankTiles,
        p.columns,
        chunks,
        expandBytes(rows, p.columns),
        sumBytes(rows, Math.min(p.columns, rankTiles * RANK_TILE)));
  }

  private static LaunchPlan general() {
    return new LaunchPlan(LoraPath.GENERAL, false, 16, 0, 1, 1, 1, 4, 0, 1, 0, 0);
  }

  /** Segments with pairs, where experts are drawn at random. */
  private static double touched(Problem p) {
    double all = (double) p.experts * p.adapters;
    return Math.max(1, -all * Math.expm1(-p.pairs / all));
  }

  /** Sorting costs a launch or two, but pairs that share factors then read them once. */
  static boolean sorted(Problem p, LoraPath wish) {
    double saved = (p.pairs - touched(p)) * p.columns * ((double) p.in + p.out) * 2;
    return wish == LoraPath.ONE_SHOT || saved > SORT_MICROS * BYTES_PER_MICRO;
  }

  /**
   * Measured on an H200: one launch is best while its tiles do not fill the card; then registers
   * that hold ranks are better used for one thing at a time. Where there are no clusters, few tiles
   * would leave the card idle while each shrinks.
   */
  private static boolean oneShotPays(Problem p, Card card, long tiles) {
    if (!card.clusters) {
      return tiles > card.multiprocessors && p.columns <= NARROW;
    }
    if (p.columns > NARROW) {
      return p.slices == 1 || p.pairs <= FEW_PAIRS;
    }
    return tiles <= card.multiprocessors && (p.groups() <= WIDE_GROUPS || p.pairs <= FEW_PAIRS);
  }

  private static int tileRows(Problem p) {
    return p.pairs / touched(p) <= ROWS_OF_SMALL_TILES ? 16 : 32;
  }

  private static long expectedTiles(Problem p, int rows) {
    return rows == 1 ? p.pairs : (long) (touched(p) * Math.ceil(p.pairs / touched(p) / rows));
  }

  /** Every segment ends in at most one tile that is not full. */
  private static int maxTiles(Problem p, int rows) {
    return (int) Math.min(p.pairs, p.pairs / rows + p.mostSegments());
  }

  /** Bytes from one row of ranks to the next, as in {@code tiles.cuh}. */
  private static long rankRowBytes(int columns) {
    return Math.ceilDiv(columns * 2, 128) * 128L + 64;
  }

  private static int expandBytes(int rows, int columns) {
    return (int) Math.min(Integer.MAX_VALUE, 2L * rows * rankRowBytes(columns));
  }

  private static int sumBytes(int rows, int columns) {
    // Over 64 ranks, two warps share them.
    int warpsARow = WARPS / (rows / 16) / (columns > 64 ? 2 : 1);
    return Math.max(1, warpsARow / 2) * rows * (columns + 8) * Float.BYTES;
  }

  private static int oneShotBytes(int rows, int columns) {
    return sumBytes(rows, columns) + expandBytes(rows, columns);
  }

  /** {@return floats that a separate shrink leaves} */
  long partFloats(int pairs) {
    return path == LoraPath.TWO_KERNELS ? (long) splits * pairs * columns : 0;
  }
}
