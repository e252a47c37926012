package io.moe4j.lora.cuda;

/**
 * How one call is launched: a pure function of sizes.
 *
 * @param path not {@link LoraPath#AUTO}
 * @param sorted whether pairs are sorted into tiles; otherwise a tile is a pair
 * @param tileRows most rows of a tile: 16, 32 or 64
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
  private static final int FEW_TILES = 16;
  private static final double FEW_ROWS = 3;
  private static final double ROWS_OF_SMALL_TILES = 12;
  private static final double ROWS_OF_LARGE_TILES = 24;
  private static final int MOST_ROWS_OF_TWO_KERNELS = 32;
  private static final int MOST_WAVES_OF_CLUSTERS = 4;
  private static final double[] CLUSTERS_FIT = {1, 0.98, 0.94, 0.7};
  private static final int NARROW = 32;
  private static final int STAGE_BYTES = 98304;
  private static final int MAX_STAGES = 6;
  private static final int WIDE_GROUPS = 384;
  private static final double SORT_MICROS = 5;
  private static final double BYTES_PER_MICRO = 2e6;
  private static final double CACHED_BYTES_PER_MICRO = 8e6;

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

    private double rowsOfSegment() {
      return pairs / touched(this);
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
    int rows = sort ? tileRows(p, card) : 16;
    int held = p.columns <= 4 * RANK_TILE ? 4 : p.columns <= 8 * RANK_TILE ? 8 : 16;
    boolean oneShot =
        p.columns <= ONE_SHOT_COLUMNS
            && oneShotBytes(rows, held * RANK_TILE) <= card.sharedBytes
            && (wish == LoraPath.AUTO
                ? oneShotPays(p, card, expectedTiles(p, sort ? rows : 1))
                : wish != LoraPath.TWO_KERNELS);
    if (!oneShot) {
      rows = Math.min(rows, MOST_ROWS_OF_TWO_KERNELS);
      // Ranks of a tile lie in shared memory, twice 16 bits each.
      while (rows > 16 && expandBytes(rows, p.columns) > card.sharedBytes) {
        rows /= 2;
      }
      if (expandBytes(rows, p.columns) > card.sharedBytes) {
        return general();
      }
    }
    long expected = expectedTiles(p, sort ? rows : 1);
    int tiles = sort ? maxTiles(p, rows) : p.pairs;
    int target = 2 * card.multiprocessors;
    int steps = Math.ceilDiv(p.in, STEP);
    int groups = p.groups();
    if (oneShot) {
      int cluster = card.clusters ? cluster(expected, card, Math.ceilDiv(p.in, 2 * STEP)) : 1;
      int parts = 1;
      while (parts < 8 && partsPay(p, expected * cluster, cluster, parts, card)) {
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
        shrinkBytes(rows, Math.min(p.columns, rankTiles * RANK_TILE)));
  }

  private static LaunchPlan general() {
    return new LaunchPlan(LoraPath.GENERAL, false, 16, 0, 1, 1, 1, 4, 0, 1, 0, 0);
  }

  /** Segments with pairs, where experts are drawn at random. */
  private static double touched(Problem p) {
    double all = (double) p.experts * p.adapters;
    return Math.max(1, -all * Math.expm1(-p.pairs / all));
  }

  /**
   * Sorting costs a launch or two, but pairs that share factors then read them once. Where two or
   * three do, the cache mostly serves the second anyway. A routed map of one target has half the
   * ranks of the two that precede it, and uses their sort.
   */
  static boolean sorted(Problem p, LoraPath wish) {
    int columns = p.slices == 1 && p.experts > 1 ? 2 * p.columns : p.columns;
    double saved = (p.pairs - touched(p)) * columns * ((double) p.in + p.out) * 2;
    double rate = p.rowsOfSegment() < FEW_ROWS ? CACHED_BYTES_PER_MICRO : BYTES_PER_MICRO;
    return wish == LoraPath.ONE_SHOT || saved > SORT_MICROS * rate;
  }

  /**
   * Measured on an H200. Where there are no clusters, few tiles would leave the card idle while
   * each shrinks; with few rows and wide outputs, many blocks for the expand alone do better.
   */
  private static boolean oneShotPays(Problem p, Card card, long tiles) {
    if (!card.clusters) {
      return tiles > card.multiprocessors && p.columns <= NARROW;
    }
    return p.groups() <= WIDE_GROUPS
        || tiles <= FEW_TILES
        || p.rowsOfSegment() >= ROWS_OF_LARGE_TILES;
  }

  /**
   * Tiles of 64 rows read factors half as often as those of 32, but where they would not fill the
   * card twice, more and smaller ones do better: some read while others compute.
   */
  private static int tileRows(Problem p, Card card) {
    double rows = p.rowsOfSegment();
    if (rows <= ROWS_OF_SMALL_TILES) {
      return 16;
    }
    boolean few = rows > 64 && expectedTiles(p, 64) < 2L * card.multiprocessors;
    return rows < ROWS_OF_LARGE_TILES || few ? 32 : 64;
  }

  /** A segment's last tile is half full. */
  private static long expectedTiles(Problem p, int rows) {
    if (rows == 1) {
      return p.pairs;
    }
    return (long) (touched(p) * Math.max(1, p.rowsOfSegment() / rows + 0.5));
  }

  /** Blocks of clusters of a size that run at once, two a multiprocessor. */
  private static double room(Card card, int size) {
    return 2 * card.multiprocessors * CLUSTERS_FIT[Integer.numberOfTrailingZeros(size)];
  }

  /**
   * Blocks that share a tile: what leaves the least of the card idle in the last wave. Sharing
   * costs about 8% each time it doubles, and a second wave of few tiles more than it saves.
   */
  private static int cluster(long tiles, Card card, int stages) {
    int best = 1;
    double least = Double.MAX_VALUE;
    for (int size = 1; size <= MAX_CLUSTER && size <= stages; size *= 2) {
      double waves = Math.ceil(tiles * size / room(card, size));
      boolean sensible =
          waves == 1 || (tiles > card.multiprocessors && waves <= MOST_WAVES_OF_CLUSTERS);
      double cost = waves / size * (1 + 0.08 * Integer.numberOfTrailingZeros(size));
      if ((size == 1 || sensible) && cost < least) {
        least = cost;
        best = size;
      }
    }
    return best;
  }

  /**
   * Whether more blocks for the expand are worth that each of them shrinks: where most of the card
   * is idle, or there are many columns, more than the shrink reads.
   */
  private static boolean partsPay(Problem p, long blocks, int cluster, int parts, Card card) {
    long then = blocks * parts * 2;
    int groups = p.groups();
    boolean idle = then <= card.multiprocessors / 2;
    return then <= room(card, cluster)
        && (idle
            ? groups >= 8 * cluster * parts
            : groups > 16 * cluster * parts && groups * GROUP > p.in);
  }

  /** Every segment ends in at most one tile that is not full. */
  private static int maxTiles(Problem p, int rows) {
    return (int) Math.min(p.pairs, p.pairs / rows + p.mostSegments());
  }

  /** Bytes from one row of ranks to the next, as in {@code tiles.cuh}. */
  private static long rankRowBytes(int columns) {
    return columns * 2L + 16;
  }

  private static int expandBytes(int rows, int columns) {
    return (int) Math.min(Integer.MAX_VALUE, 2L * rows * rankRowBytes(columns));
  }

  /** Warps that share the contraction of 16 rows; over 32 ranks, two warps share those. */
  private static int contractionWarps(int rows, int columns) {
    return WARPS / (rows / 16) / (columns > NARROW ? 2 : 1);
  }

  private static int sumBytes(int rows, int columns, int warps) {
    return Math.max(1, warps / 2) * rows * (columns + 8) * Float.BYTES;
  }

  private static int shrinkBytes(int rows, int columns) {
    int warps = WARPS / (rows / 16) / (columns > 64 ? 2 : 1);
    return sumBytes(rows, columns, warps);
  }

  /** Stages of x and A, as in {@code staged.cuh}, where later sums and ranks are. */
  private static int oneShotBytes(int rows, int columns) {
    int warps = contractionWarps(rows, columns);
    int stage = (rows + columns) * Math.max(2, warps) * STEP * 2;
    int stages = Math.min(MAX_STAGES, STAGE_BYTES / stage) * stage;
    return Math.max(stages, sumBytes(rows, columns, warps) + expandBytes(rows, columns));
  }

  /** {@return floats that a separate shrink leaves} */
  long partFloats(int pairs) {
    return path == LoraPath.TWO_KERNELS ? (long) splits * pairs * columns : 0;
  }
}
