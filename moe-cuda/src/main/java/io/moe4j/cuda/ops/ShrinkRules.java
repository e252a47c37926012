package io.moe4j.cuda.ops;

/**
 * How the shrinks of a forward with fused LoRA are cut: so that about two programs a multiprocessor
 * have work. Measured on an H200 as part of backend-triton's tiles. Pure functions of their
 * arguments.
 *
 * @since 0.2.0
 */
public final class ShrinkRules {
  private static final int HALF_WIDE = 64;
  private static final int WIDE = 128;
  private static final int PROGRAMS = 132;
  private static final int SHORT_ROWS = 16;
  private static final int MAX_SPLITS = 16;
  private static final int MAX_SPLITS_TALL = 8;

  private ShrinkRules() {}

  /**
   * What a choice depends on.
   *
   * @param tuned whether the Hopper bf16 set is there, else the portable one
   * @param gated whether w13 has gate rows
   * @param pairs {@code P}
   * @param experts local
   * @param hidden width of the experts' input and output
   * @param intermediate {@code I}
   * @param slots adapters in slots, at least 1
   * @param rank largest rank of any of them, padded to a page
   * @param naive whether every pair is a tile of its own
   */
  public record Sizes(
      boolean tuned,
      boolean gated,
      int pairs,
      int experts,
      int hidden,
      int intermediate,
      int slots,
      int rank,
      boolean naive) {
    /** {@return whether shrinks need not look where the contraction ends} */
    public boolean whole() {
      return hidden % HALF_WIDE == 0 && intermediate % HALF_WIDE == 0;
    }

    private long segments() {
      return Math.min((long) pairs, (long) experts * slots);
    }

    private double rowsPerSegment() {
      return (double) pairs / segments();
    }
  }

  /**
   * {@return both shrinks of a forward}
   *
   * @param s its sizes
   * @param gather whether the first reads tokens rather than rows in the order of the sort
   */
  public static ShrinkPlan plan(Sizes s, boolean gather) {
    int rows = rows(s);
    return new ShrinkPlan(s.naive(), gather, false, rows, first(s, rows), second(s, rows));
  }

  /**
   * {@return rows of a tile}
   *
   * @param s the forward's sizes
   */
  public static int rows(Sizes s) {
    double rows = s.rowsPerSegment();
    return s.naive() || rows <= 24 || !s.whole()
        ? SHORT_ROWS
        : rows <= 48 && s.tuned() ? 2 * SHORT_ROWS : HALF_WIDE;
  }

  /**
   * {@return the shrink of the w13 projections}
   *
   * @param s the forward's sizes
   * @param rows of a tile
   */
  public static Shrink first(Sizes s, int rows) {
    return shrink(s, s.gated() ? "pair" : "single", s.hidden(), rows);
  }

  /**
   * {@return the shrink of the down projection}
   *
   * @param s the forward's sizes
   * @param rows of a tile
   */
  public static Shrink second(Sizes s, int rows) {
    return shrink(s, "down", s.intermediate(), rows);
  }

  private static Shrink shrink(Sizes s, String of, int contraction, int rows) {
    boolean pair = of.equals("pair");
    boolean all = s.tuned() && !of.equals("single") && s.whole();
    int step = all && contraction % WIDE == 0 ? WIDE : HALF_WIDE;
    int[] widths =
        pair
            ? rows == SHORT_ROWS ? new int[] {32, 64} : new int[] {32, 128}
            : rows == SHORT_ROWS && all ? new int[] {16, 32, 64} : new int[] {16, 64};
    int total = s.rank() * (pair ? 2 : 1);
    long tiles =
        s.naive() ? s.pairs() : s.segments() * Math.max(1, Math.round(s.rowsPerSegment() / rows));
    int i = 0;
    while (i < widths.length - 1 && widths[i] < total) {
      i++;
    }
    while (i > 0 && tiles * Math.ceilDiv(total, widths[i]) < PROGRAMS) {
      i--;
    }
    int chunks = Math.ceilDiv(total, widths[i]);
    int splits = 1;
    int most = mostSplits(contraction, step, rows);
    while (tiles * chunks * splits < 2 * PROGRAMS && splits < most) {
      splits *= 2;
    }
    return new Shrink(widths[i], step, !s.whole(), chunks, splits);
  }

  /**
   * {@return the most splits a shrink is made with, a power of two: each has two steps or more}
   *
   * @param contraction elements of it
   * @param step elements a step
   * @param rows of a tile
   */
  public static int mostSplits(int contraction, int step, int rows) {
    int most = rows == SHORT_ROWS ? MAX_SPLITS : MAX_SPLITS_TALL;
    int splits = 1;
    while (splits < most && contraction / (splits * 2) >= 2 * step) {
      splits *= 2;
    }
    return splits;
  }
}
