package io.moe4j.backend.triton.tiles;

import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.ops.ShrinkRules;

/**
 * Which compiled tiles a forward runs with. The choices for Hopper in bf16 are those that won
 * measured sweeps on one H200 over three layer shapes (128 experts of 768 x 2048 and 2880 x 2880, 8
 * of 14336 x 4096), 1 to 8192 tokens, without adapters and with ranks 16 and 64; between and beyond
 * them the number of rows an expert gets decides. Everything else runs a small portable set. Pure
 * functions of their arguments.
 */
public final class TileTable {
  private static final int FEW_ROWS = 16;
  private static final int MANY_SLOTS = 16;
  private static final int WIDE = 128;
  private static final int HALF_WIDE = 64;
  private static final int SHORT_SHRINK = 16;
  private static final int PORTABLE_TALL_ROWS = 96;
  private static final int DOWN_WARPS = 8;
  private static final int DOWN_STEPS = 12;

  /** Of the cards that the set was tuned for. */
  private static final int MULTIPROCESSORS = 132;

  /** A round of tiles of half the width, as a share of one of the whole width. */
  private static final double HALF_ROUND = 0.6;

  /** Rows per expert up to which hardly any has more than a tile of {@link #WIDE} rows. */
  private static final int SURELY_ONE_TILE = 96;

  private TileTable() {}

  /**
   * What a choice depends on.
   *
   * @param tuned whether the Hopper bf16 set is there, else the portable one
   * @param stages pipeline stages of the portable set
   * @param gated whether w13 has gate rows
   * @param tokens {@code T}
   * @param topK {@code K}
   * @param experts local experts
   * @param hidden width of the experts' input and output
   * @param intermediate {@code I}
   * @param slots adapters in slots, 0 without LoRA
   * @param rank largest rank of any of them, padded to a page
   * @param sorted whether pairs must be sorted even where there are few
   * @param mxfp4 whether weights are in 4 bits
   */
  public record Problem(
      boolean tuned,
      int stages,
      boolean gated,
      int tokens,
      int topK,
      int experts,
      int hidden,
      int intermediate,
      int slots,
      int rank,
      boolean sorted,
      boolean mxfp4) {
    /** {@return a forward of another size through the same layer} */
    public Problem of(int newTokens, int newSlots, int newRank) {
      return new Problem(
          tuned,
          stages,
          gated,
          newTokens,
          topK,
          experts,
          hidden,
          intermediate,
          newSlots,
          newRank,
          sorted,
          mxfp4);
    }

    int pairs() {
      return tokens * topK;
    }

    public boolean lora() {
      return slots > 0;
    }

    /** Mean rows of an expert that has any. */
    double rowsPerExpert() {
      return (double) pairs() / Math.min(experts, pairs());
    }

    double rowsPerSegment() {
      return (double) pairs() / Math.min((long) pairs(), (long) experts * slots);
    }
  }

  /** Whether every pair is a tile of its own: a rule, not a choice, whatever was tuned. */
  public static boolean naive(Problem p) {
    return !p.sorted() && (p.tokens() == 1 || (long) p.pairs() * 4 <= p.experts());
  }

  /** Whether shrinks need not look where the contraction ends. */
  public static boolean whole(Problem p) {
    return p.hidden() % HALF_WIDE == 0 && p.intermediate() % HALF_WIDE == 0;
  }

  public static TilePlan choose(Problem p) {
    boolean naive = naive(p);
    String w13;
    String w2;
    if (p.mxfp4()) {
      w13 = mxfp4(p, naive, true);
      w2 = mxfp4(p, naive, false);
    } else if (!whole(p)) {
      boolean low = naive || p.rowsPerExpert() < FEW_ROWS;
      w13 = any(p, low, true);
      w2 = any(p, low, false);
    } else if (!p.tuned()) {
      String rows =
          naive || p.rowsPerExpert() < FEW_ROWS
              ? "16"
              : p.rowsPerExpert() < PORTABLE_TALL_ROWS ? "64" : "128";
      w13 = rows + "x64x64-ptr-w4-s" + p.stages();
      w2 = w13;
    } else if (!p.gated()) {
      w13 = single(p, naive);
      w2 = second(p, p.intermediate(), p.hidden(), naive, TilePlan.rows(w13));
    } else {
      w13 = first(p, naive);
      w2 = second(p, p.intermediate(), p.hidden(), naive, TilePlan.rows(w13));
    }
    boolean permute =
        p.tuned()
            && p.gated()
            && !p.mxfp4()
            && TilePlan.rows(w13) == WIDE
            && p.rowsPerExpert() >= 256
            && p.hidden() >= 2560;
    int groupTiles = p.experts() <= 16 && p.rowsPerExpert() >= 1024 ? 16 : 8;
    int shrinkRows = p.lora() ? ShrinkRules.rows(shrinks(p)) : SHORT_SHRINK;
    return plan(p, w13, w2, permute, groupTiles, shrinkRows);
  }

  private static ShrinkRules.Sizes shrinks(Problem p) {
    return new ShrinkRules.Sizes(
        p.tuned(),
        p.gated(),
        p.pairs(),
        p.experts(),
        p.hidden(),
        p.intermediate(),
        p.slots(),
        p.rank(),
        naive(p));
  }

  /** A plan with given tiles; widths, steps and splits of its shrinks by rule. */
  public static TilePlan plan(
      Problem p, String w13, String w2, boolean permute, int groupTiles, int shrinkRows) {
    boolean naive = naive(p);
    Shrink shrink13 = Shrink.NONE;
    Shrink shrink2 = Shrink.NONE;
    if (p.lora()) {
      shrink13 = ShrinkRules.first(shrinks(p), shrinkRows);
      shrink2 = ShrinkRules.second(shrinks(p), shrinkRows);
    }
    return new TilePlan(
        p.tuned(),
        naive,
        w13,
        w2,
        TilePlan.rows(w13),
        TilePlan.columns(w13),
        TilePlan.columns(w2),
        sums(p),
        permute,
        groupTiles,
        shrinkRows,
        shrink13,
        shrink2);
  }

  /**
   * Whether {@code down.cu} computes w2 and the weighted sum: for one token, where its blocks are
   * on the card at once; no more experts than it has warps, whole steps, and no more than two
   * rounds of those that it keeps under way. Of several tokens a row would not have the same bits
   * with adapters around it and without.
   */
  static boolean sums(Problem p) {
    return naive(p)
        && p.tuned()
        && !p.mxfp4()
        && p.tokens() == 1
        && p.topK() <= DOWN_WARPS
        && p.intermediate() % HALF_WIDE == 0
        && p.topK() * p.intermediate() <= 2 * DOWN_WARPS * DOWN_STEPS * HALF_WIDE;
  }

  /**
   * For products that are written as they are: both run on tiles of the second GEMM.
   *
   * @param p without LoRA
   * @param base chosen for it
   */
  public static TilePlan composed(Problem p, TilePlan base) {
    String w13 =
        p.tuned() && !p.mxfp4() && whole(p)
            ? second(
                p,
                p.hidden(),
                p.intermediate() * (p.gated() ? 2 : 1),
                base.naive(),
                base.tileRows())
            : base.w2();
    if (!TilePlan.any(w13) && p.hidden() % TilePlan.step(w13) != 0) {
      // A tuned tile of w2 whose steps are not those of the other contraction.
      return composed(p, choose(p));
    }
    return new TilePlan(
        base.tuned(),
        base.naive(),
        w13,
        base.w2(),
        base.tileRows(),
        TilePlan.columns(w13),
        base.tileColumns2(),
        false,
        false,
        base.groupTiles(),
        base.shrinkRows(),
        Shrink.NONE,
        Shrink.NONE);
  }

  /** Few tiles, for all cards; what won a sweep over one shape (128 experts of 2880 x 2880). */
  private static String mxfp4(Problem p, boolean naive, boolean first) {
    String tile;
    if (naive) {
      tile = "16x32x256-ptr-w4";
    } else if (p.rowsPerExpert() < FEW_ROWS) {
      tile = first ? "16x64x128-ptr-w4" : "16x128x128-ptr-w4";
    } else if (p.rowsPerExpert() < PORTABLE_TALL_ROWS) {
      tile = first ? "64x64x64-ptr-w4" : "64x128x64-ptr-w4";
    } else {
      tile = first ? "128x64x64-ptr-w4" : "128x128x64-ptr-w8";
    }
    return tile + "-s" + p.stages() + "-any";
  }

  /** For contractions that are no multiple of 64. */
  private static String any(Problem p, boolean low, boolean first) {
    if (!low) {
      return "64x64x64-ptr-w4-s" + p.stages() + "-any";
    }
    if (p.tuned()) {
      return first ? "16x32x64-ptr-w4-s4-any" : "16x64x64-ptr-w4-s4-any";
    }
    return "16x64x64-ptr-w4-s" + p.stages() + "-any";
  }

  private static String single(Problem p, boolean naive) {
    return naive || p.rowsPerExpert() < FEW_ROWS
        ? "16x32x64-ptr-w4-s6"
        : p.rowsPerExpert() < HALF_WIDE ? "64x64x64-tma-w4-s4" : "128x128x64-tma-w8-s4-tail";
  }

  private static String first(Problem p, boolean naive) {
    double rows = p.rowsPerExpert();
    boolean wide = p.hidden() % WIDE == 0;
    boolean long256 = p.hidden() % 256 == 0 && p.hidden() >= 4096;
    if (naive) {
      return long256
          ? "16x32x256-ptr-w4-s3"
          : !wide
              ? "16x32x64-ptr-w4-s6"
              : p.tokens() == 1 ? "16x32x128-ptr-w4-s4" : "16x64x128-tma-w4-s3";
    }
    boolean heavy = heavy(p);
    if (rows < 12) {
      if (!wide) {
        return rows <= 2 ? "16x32x64-ptr-w4-s6" : "16x32x64-tma-w4-s6";
      }
      if (long256) {
        return rows <= 2 ? "16x32x256-ptr-w4-s3" : "16x32x128-ptr-w4-s4";
      }
      return rows <= 2 || p.hidden() % 256 != 0 ? "16x64x128-tma-w4-s3" : "16x32x256-ptr-w4-s3";
    }
    if (rows < 24) {
      return wide && !heavy ? "32x64x128-tma-w4-s3" : "32x64x64-tma-w4-s4";
    }
    if (rows < 48 || heavy) {
      return rows >= 256 ? "64x128x64-tma-w4-s4" : "64x64x64-tma-w4-s4";
    }
    return "128x128x64-tma-w8-s4-tail";
  }

  private static String second(
      Problem p, int contraction, int columns, boolean naive, int height) {
    double rows = p.rowsPerExpert();
    boolean wide = contraction % WIDE == 0;
    boolean long256 = contraction % 256 == 0 && contraction >= 8192;
    return switch (height) {
      case 16 -> {
        if (naive) {
          yield long256
              ? "16x32x256-ptr-w4-s4"
              : wide
                  ? p.tokens() == 1 ? "16x128x64-tma-w4-s5" : "16x64x128-tma-w4-s4"
                  : p.tokens() == 1 ? "16x32x64-ptr-w4-s8" : "16x128x64-tma-w4-s5";
        }
        if (!wide) {
          yield "16x32x64-ptr-w4-s8";
        }
        if (long256 && rows <= 2) {
          yield "16x32x256-ptr-w4-s4";
        }
        yield rows <= 2 ? "16x64x128-tma-w4-s4" : "16x128x128-tma-w4-s3";
      }
      case 32 ->
          wide && !(p.lora() && p.rank() >= 64 && p.slots() >= 8)
              ? "32x128x128-tma-w4-s3"
              : "32x64x64-tma-w4-s5";
      case 64 -> "64x128x64-tma-w4-s4";
      default -> {
        String many =
            !p.lora() && (rows <= 64 || (contraction < 1024 && rows <= 256))
                ? "128x128x64-tma-w4-s3-tail"
                : "128x256x64-tma-w8-s4-tail";
        yield isDeepFaster(p, columns, TilePlan.columns(many))
            ? "128x128x64-tma-w8-s6-tail"
            : many;
      }
    };
  }

  /**
   * Whether few programs run better by tiles that have a multiprocessor for themselves and more of
   * their weights under way: where there are no more than multiprocessors, or where the last round
   * of wider tiles would leave most of the card idle. So with few large experts, as a rank has
   * them.
   *
   * @param columns of the product
   * @param otherwise columns of the tile that many programs run with
   */
  private static boolean isDeepFaster(Problem p, int columns, int otherwise) {
    long deep = rounds(p, columns, WIDE);
    return deep == 1 || (otherwise > WIDE && deep * HALF_ROUND < rounds(p, columns, otherwise));
  }

  /** Of tiles that have a multiprocessor for themselves, with as many rows as are to be expected. */
  private static long rounds(Problem p, int columns, int tileColumns) {
    double rows = p.rowsPerExpert();
    double each = rows <= SURELY_ONE_TILE ? 1 : rows / WIDE + 0.5;
    double tiles = each * Math.min(p.experts(), p.pairs());
    return (long) Math.ceil(tiles * Math.ceilDiv(columns, tileColumns) / MULTIPROCESSORS);
  }

  /** Many small segments in a tall tile: shorter tiles hide the expand better. */
  private static boolean heavy(Problem p) {
    return p.slots() >= MANY_SLOTS
        && p.experts() >= 32
        && WIDE / Math.min(WIDE, p.rowsPerSegment()) * p.rank() >= 1024;
  }
}
