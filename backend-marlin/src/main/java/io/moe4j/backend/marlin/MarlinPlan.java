package io.moe4j.backend.marlin;

import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.ops.ShrinkPlan;
import io.moe4j.cuda.ops.ShrinkRules;
import java.util.List;

/**
 * How one forward is launched.
 *
 * @param naive whether every pair is a tile of its own, without sorting: for few pairs
 * @param first product w13
 * @param second product w2; as many rows as the first, since they share the sorted lists
 * @param groupTiles neighbouring row tiles that run through the outputs together, for the cache
 * @param shrinks of LoRA
 */
record MarlinPlan(
    boolean naive, ProductPlan first, ProductPlan second, int groupTiles, ShrinkPlan shrinks) {
  private static final int FEW_ROWS = 5;
  private static final int SHORT_ROWS = 10;
  private static final int SOME_ROWS = 24;
  private static final int MANY_ROWS = 48;

  /** Rows an expert up to which its rows fit a tile of 80 most of the time. */
  private static final int MIDDLE_ROWS = 72;

  /** Blocks of w2 of that height a multiprocessor, at least: two rounds. */
  private static final long MIDDLE_BLOCKS = 6;

  private static final int MOST_GROUP_TILES = 64;

  /**
   * With adapters of so many ranks together and more experts than this, up to so many rows each:
   * the expand takes as long as the product, and blocks of 64 rows hide one behind the other.
   * Measured with 32 adapters of rank 64; with 8 of rank 16 it did not pay.
   */
  private static final int MANY_RANKS = 2048;

  private static final int FEW_EXPERTS = 16;
  private static final int EXPANDED_ROWS = 512;

  private static final int ROUND_ROWS = 16;

  /** Blocks of single that a multiprocessor has at once, or so. */
  private static final double SINGLE_BLOCKS = 2.5;

  /** Of 4 bits, rows of tiles a multiprocessor up to which single was faster than narrow. */
  private static final int SINGLE_OUTPUTS = 6;

  /** Chunks of a warp from which a block is long: where it runs counts for more than when. */
  private static final int MANY_CHUNKS = 16;

  /**
   * What the beginning and end of a block of narrow cost, in chunks of its loop, and what more for
   * each warp that shares an output.
   */
  private static final double BLOCK_COST = 6;

  private static final double SHARE_COST = 0.5;

  /**
   * How long a multiprocessor takes with 1, 2, 3 blocks in a round where it has place for so many
   * as there are elements, compared with a full one.
   */
  private static final double[][] ROUNDS = {{1}, {0.65, 1}, {0.6, 0.74, 1}};

  private static final ShrinkPlan NO_SHRINKS =
      new ShrinkPlan(false, true, false, 1, Shrink.NONE, Shrink.NONE);

  /**
   * What a choice depends on.
   *
   * @param narrow heights of narrow that the card has for both weights, ascending
   * @param wide heights of wide, likewise; empty where there is no such kernel
   * @param single whether the card has single for both weights
   * @param first layout of the w13 matrices
   * @param second layout of w2
   * @param gated whether w13 has gate rows
   * @param tokens {@code T}
   * @param topK {@code K}
   * @param experts local
   * @param hidden padded width of the experts' input and output
   * @param intermediate padded {@code I}
   * @param slots adapters in slots, 0 without LoRA
   * @param rank largest rank of any of them, padded to a page
   * @param sorted whether pairs must be sorted even where there are few
   * @param tuned whether the Hopper bf16 shrinks are there
   * @param multiprocessors of the card
   */
  record Problem(
      List<Integer> narrow,
      List<Integer> wide,
      boolean single,
      PackedLayout first,
      PackedLayout second,
      boolean gated,
      int tokens,
      int topK,
      int experts,
      int hidden,
      int intermediate,
      int slots,
      int rank,
      boolean sorted,
      boolean tuned,
      int multiprocessors) {
    int pairs() {
      return tokens * topK;
    }

    /** Mean rows of an expert that has any. */
    double rows() {
      return (double) pairs() / Math.min(experts, pairs());
    }

    /** Experts with any row, to be expected of an even routing. */
    int touched() {
      double none = Math.pow(1 - Math.min(1.0, (double) topK / experts), tokens);
      return Math.max(1, (int) Math.round(experts * (1 - none)));
    }

    /** {@return the same layer's forward of another size} */
    Problem of(int otherTokens, int otherSlots, int otherRank) {
      return new Problem(
          narrow,
          wide,
          single,
          first,
          second,
          gated,
          otherTokens,
          topK,
          experts,
          hidden,
          intermediate,
          otherSlots,
          otherRank,
          sorted,
          tuned,
          multiprocessors);
    }

    /** Whether {@code single} can compute it: a warp has one expert of a token at most. */
    boolean isSingle() {
      return single && naive() && topK <= ProductPlan.SUM_WARPS;
    }

    boolean naive() {
      return !sorted && (tokens == 1 || (long) pairs() * 4 <= experts);
    }
  }

  /**
   * {@return the plan of a forward}; heights are those that won on an H200 over three layers
   *
   * @param p its sizes
   */
  static MarlinPlan choose(Problem p) {
    if (p.isSingle() && singlePays(p)) {
      return of(p, MarlinKernels.SINGLE, 1);
    }
    // Up to so many rows the shortest tiles win, even where an expert has two of them.
    if (p.naive() || p.rows() < (p.wide().isEmpty() ? SHORT_ROWS : FEW_ROWS)) {
      return of(p, MarlinKernels.NARROW, p.narrow().getFirst());
    }
    if (p.wide().isEmpty()) {
      return of(p, MarlinKernels.NARROW, upTo(p.narrow(), p.rows() <= SOME_ROWS ? 16 : 64));
    }
    return of(p, MarlinKernels.WIDE, upTo(p.wide(), wideRows(p)));
  }

  private static int wideRows(Problem p) {
    double rows = p.rows();
    if (rows < MANY_ROWS || expands(p)) {
      return rows <= SOME_ROWS ? 32 : 64;
    }
    // Short blocks that are not many leave some multiprocessors with less than others.
    long blocks = (long) p.touched() * Math.ceilDiv(p.hidden(), ProductPlan.GROUP_OUTPUTS);
    boolean many = blocks >= MIDDLE_BLOCKS * p.multiprocessors();
    return rows <= MIDDLE_ROWS && many && p.wide().contains(ProductPlan.MIDDLE)
        ? ProductPlan.MIDDLE
        : ProductPlan.TALL;
  }

  /** Whether the expand of adapters takes as long as the product it belongs to. */
  private static boolean expands(Problem p) {
    return (long) p.slots() * p.rank() >= MANY_RANKS
        && p.experts() > FEW_EXPERTS
        && p.rows() <= EXPANDED_ROWS;
  }

  /** The largest of some heights, ascending, that is not over a limit; else the smallest. */
  private static int upTo(List<Integer> heights, int most) {
    return heights.stream().filter(r -> r <= most).reduce((a, b) -> b).orElse(heights.getFirst());
  }

  /**
   * {@return a plan of given tiles}
   *
   * @param p the forward's sizes
   * @param kind of kernel
   * @param rows of a tile
   */
  static MarlinPlan of(Problem p, String kind, int rows) {
    boolean lora = p.slots() > 0;
    ShrinkPlan shrinks =
        lora
            ? ShrinkRules.plan(
                new ShrinkRules.Sizes(
                    p.tuned(),
                    p.gated(),
                    p.pairs(),
                    p.experts(),
                    p.hidden(),
                    p.intermediate(),
                    p.slots(),
                    p.rank(),
                    p.naive()),
                true)
            : NO_SHRINKS;
    int rank = lora ? p.rank() : 0;
    ProductPlan first;
    ProductPlan second;
    if (kind.equals(MarlinKernels.SINGLE)) {
      MarlinPlan other = of(p, MarlinKernels.NARROW, p.narrow().getFirst());
      first =
          isFirstSingle(p) ? ProductPlan.single(p.first(), singleWarps(p), false) : other.first();
      second = ProductPlan.single(p.second(), ProductPlan.WARPS, true);
      // w2 brings weights before it waits for the shrink: it is let in while that one waits.
      shrinks =
          new ShrinkPlan(
              shrinks.naive(),
              shrinks.gather(),
              true,
              shrinks.rows(),
              shrinks.first(),
              shrinks.second());
    } else if (kind.equals(MarlinKernels.WIDE)) {
      first = wide(p, p.first(), p.gated(), p.intermediate(), rows);
      second = wide(p, p.second(), false, p.hidden(), rows);
    } else {
      int tiles = tiles(p);
      first =
          ProductPlan.narrow(
              p.first(),
              p.gated(),
              rows,
              p.naive(),
              warps(p, rows, tiles, p.first(), p.intermediate(), p.gated() ? 16 : 32),
              rank);
      second =
          ProductPlan.narrow(
              p.second(),
              false,
              rows,
              p.naive(),
              warps(p, rows, tiles, p.second(), p.hidden(), 32),
              rank);
      first = spread(p, first, p.intermediate(), p.first().chunks() / first.warps());
      second = spread(p, second, p.hidden(), Long.MAX_VALUE);
    }
    int groupTiles = p.experts() <= 16 && p.rows() >= 1024 ? 32 : 8;
    return new MarlinPlan(p.naive(), first, second, groupTiles, shrinks);
  }

  /**
   * {@return rows of a tile, at most those of the kernels} Where an expert has more rows than a
   * tall tile, its tiles share them: two of 144 are done sooner than one of 160 and one of 112.
   *
   * @param p the forward's sizes
   */
  int tileRows(Problem p) {
    int most = first.rows();
    if (most < ProductPlan.MIDDLE || p.rows() <= most) {
      return most;
    }
    double rows = p.rows() + 2 * Math.sqrt(p.rows()); // few experts of an even routing have more
    double each = rows / Math.ceil(rows / most);
    return Math.min(most, Math.ceilDiv((int) Math.ceil(each), ROUND_ROWS) * ROUND_ROWS);
  }

  /**
   * Launches of narrow that do better with two blocks a multiprocessor than with three. If there
   * are too few blocks for three each: the launch before still has places when they come, and some
   * multiprocessors would get three and others one; short blocks of w13 gain nothing. If there are
   * three for each and then at most one more: two rounds of two.
   */
  private static ProductPlan spread(Problem p, ProductPlan plan, int outputs, long chunks) {
    if (!plan.kind().equals(MarlinKernels.NARROW) || ProductPlan.residentBlocks(plan.rows()) != 3) {
      return plan;
    }
    long blocks = (long) tiles(p) * Math.ceilDiv(outputs, plan.outputs());
    long each = Math.ceilDiv(blocks, (long) p.multiprocessors());
    return (each == 2 && chunks >= MANY_CHUNKS) || each == 4 ? plan.twoBlocks() : plan;
  }

  /**
   * {@return the same with another number of warps that share a contraction}
   *
   * @param p the forward's sizes
   * @param ofFirst of w13, or of w2
   * @param warps as {@link ProductPlan#warps}; narrow takes fewer where x would not fit otherwise
   */
  MarlinPlan withWarps(Problem p, boolean ofFirst, int warps) {
    ProductPlan old = ofFirst ? first : second;
    if (old.kind().equals(MarlinKernels.SINGLE)) {
      return this;
    }
    PackedLayout w = ofFirst ? p.first() : p.second();
    boolean gated = ofFirst && p.gated();
    boolean lora = p.slots() > 0;
    ProductPlan other =
        old.kind().equals(MarlinKernels.WIDE)
            ? ProductPlan.wide(w, gated, old.rows(), lora, warps > 1)
            : ProductPlan.narrow(w, gated, old.rows(), naive, warps, lora ? p.rank() : 0);
    other =
        ofFirst
            ? spread(p, other, p.intermediate(), w.chunks() / other.warps())
            : spread(p, other, p.hidden(), Long.MAX_VALUE);
    return new MarlinPlan(
        naive, ofFirst ? other : first, ofFirst ? second : other, groupTiles, shrinks);
  }

  /** {@return the same with other groups of row tiles} */
  MarlinPlan withGroupTiles(int tiles) {
    return new MarlinPlan(naive, first, second, tiles, shrinks);
  }

  /**
   * {@return whether a card has the kernels and the room}
   *
   * @param p the forward's sizes
   */
  boolean fits(Problem p) {
    boolean single = second.kind().equals(MarlinKernels.SINGLE);
    return naive == p.naive()
        && (single ? p.isSingle() : first.rows() == second.rows())
        && (first.kind().equals(second.kind())
            || (single && first.kind().equals(MarlinKernels.NARROW)))
        && groupTiles > 0
        && groupTiles <= MOST_GROUP_TILES
        && fits(p, first, p.first())
        && fits(p, second, p.second());
  }

  private static boolean fits(Problem p, ProductPlan plan, PackedLayout w) {
    if (plan.kind().equals(MarlinKernels.WIDE)) {
      return !p.naive()
          && p.wide().contains(plan.rows())
          && (plan.warps() == 1
              || (plan.warps() == 2
                  && plan.rows() == ProductPlan.SPLIT_ROWS
                  && w.chunks() % 2 == 0))
          && plan.sharedBytes() <= ProductPlan.WIDE_SHARED_BYTES;
    }
    if (plan.kind().equals(MarlinKernels.SINGLE)) {
      return plan.sharedBytes() <= ProductPlan.SINGLE_SHARED_BYTES;
    }
    return p.narrow().contains(plan.rows())
        && Integer.bitCount(plan.warps()) == 1
        && plan.warps() <= ProductPlan.WARPS
        && (plan.phase() % (plan.warps() * ProductPlan.unit(w, plan.rows())) == 0
            || plan.phase() >= w.chunks())
        && plan.sharedBytes() <= ProductPlan.NARROW_SHARED_BYTES;
  }

  /** {@return what a user reads: the parts that can differ} */
  String text() {
    return second.kind()
        + " "
        + second.rows()
        + " rows, shared by "
        + first.warps()
        + " + "
        + second.warps()
        + ", groups of "
        + groupTiles;
  }

  /**
   * {@return the same with w13 as it is, for deltas of others: gate and up as one matrix, in
   * kernels without gate or LoRA}
   *
   * @param p the forward's sizes, no slots
   */
  MarlinPlan composed(Problem p) {
    if (second.kind().equals(MarlinKernels.SINGLE)) {
      return of(p, MarlinKernels.NARROW, p.narrow().getFirst()).composed(p);
    }
    int outputs = p.gated() ? 2 * p.intermediate() : p.intermediate();
    int rows = first.rows();
    ProductPlan plain =
        first.kind().equals(MarlinKernels.WIDE)
            ? wide(p, p.first(), false, outputs, rows)
            : ProductPlan.narrow(
                p.first(), false, rows, naive, warps(p, rows, tiles(p), p.first(), outputs, 32), 0);
    return new MarlinPlan(naive, plain, second, groupTiles, NO_SHRINKS);
  }

  /** Widening 4 bits takes longer: for one token only. */
  private static boolean singlePays(Problem p) {
    return p.tokens() == 1 || p.second().code().bits() == Byte.SIZE;
  }

  /** w13, too: with a gate, and with 4 bits if its outputs are few. */
  private static boolean isFirstSingle(Problem p) {
    long outputs = (long) p.pairs() * Math.ceilDiv(p.intermediate(), PackedLayout.TILE_ROWS);
    return p.gated()
        && (p.first().code().bits() == Byte.SIZE
            || outputs <= (long) SINGLE_OUTPUTS * p.multiprocessors());
  }

  /**
   * Warps that share an output of w13: as many as leave each some length, and fill the card. Of one
   * token in 4 bits fewer, so that blocks of w2 find room beside those of w13 and bring their
   * weights while it runs.
   */
  private static int singleWarps(Problem p) {
    int warps = ProductPlan.WARPS;
    if (p.tokens() == 1) {
      return p.first().code().bits() == Byte.SIZE ? warps : warps / 2;
    }
    long outputs = (long) p.pairs() * Math.ceilDiv(p.intermediate(), PackedLayout.TILE_ROWS);
    while (warps > 1
        && outputs * warps >= 2 * ProductPlan.WARPS * SINGLE_BLOCKS * p.multiprocessors()) {
      warps /= 2;
    }
    return warps;
  }

  private static int tiles(Problem p) {
    return p.naive() ? p.pairs() : p.touched();
  }

  /** Where whole contractions would leave half of the card's places empty, they are split. */
  private static ProductPlan wide(Problem p, PackedLayout w, boolean gated, int outputs, int rows) {
    long tiles = (long) Math.min(p.experts(), p.pairs()) * Math.ceilDiv((int) p.rows(), rows);
    long halves = tiles * Math.ceilDiv(outputs, gated ? 64 : 128);
    boolean split =
        rows == ProductPlan.SPLIT_ROWS && w.chunks() % 2 == 0 && halves <= 2L * p.multiprocessors();
    return ProductPlan.wide(w, gated, rows, p.slots() > 0, split);
  }

  /** How many warps share one output: the number that fills the card's rounds of blocks best. */
  private static int warps(
      Problem p, int rows, int tiles, PackedLayout w, int outputs, int outputsOfWarp) {
    double[] round = ROUNDS[ProductPlan.residentBlocks(rows) - 1];
    int unit = ProductPlan.unit(w, rows);
    int best = 1;
    double least = Double.POSITIVE_INFINITY;
    for (int k = 1; k <= ProductPlan.WARPS; k *= 2) {
      long items = (long) tiles * Math.ceilDiv(outputs, ProductPlan.WARPS / k * outputsOfWarp);
      long blocks = Math.ceilDiv(items, (long) p.multiprocessors()); // of the fullest
      long full = blocks / round.length;
      int last = (int) (blocks % round.length);
      double rounds = full + (last == 0 ? 0 : round[last - 1]);
      long chunks = Math.ceilDiv(w.chunks(), (long) k * unit) * unit;
      double cost = rounds * (chunks + BLOCK_COST + k * SHARE_COST);
      if (cost < least) {
        least = cost;
        best = k;
      }
    }
    return best;
  }
}
