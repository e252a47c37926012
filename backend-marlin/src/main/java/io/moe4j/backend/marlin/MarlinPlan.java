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
  private static final int FEW_ROWS = 7;
  private static final int SHORT_ROWS = 10;
  private static final int SOME_ROWS = 24;
  private static final int MANY_ROWS = 48;
  private static final int FILLED = 264;
  private static final int NEARLY_FILLED = 190;
  private static final ShrinkPlan NO_SHRINKS =
      new ShrinkPlan(false, true, false, 1, Shrink.NONE, Shrink.NONE);

  /**
   * What a choice depends on.
   *
   * @param narrow heights of narrow that the card has for both weights, ascending
   * @param wide heights of wide, likewise; empty where there is no such kernel
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
   */
  record Problem(
      List<Integer> narrow,
      List<Integer> wide,
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
      boolean tuned) {
    int pairs() {
      return tokens * topK;
    }

    /** Mean rows of an expert that has any. */
    double rows() {
      return (double) pairs() / Math.min(experts, pairs());
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
    // Up to so many rows the shortest tiles win, even where an expert has two of them.
    if (p.naive() || p.rows() < FEW_ROWS || (p.wide().isEmpty() && p.rows() < SHORT_ROWS)) {
      return of(p, MarlinKernels.NARROW, p.narrow().getFirst());
    }
    boolean some = p.rows() <= SOME_ROWS;
    if (p.wide().isEmpty()) {
      return of(p, MarlinKernels.NARROW, upTo(p.narrow(), some ? 16 : 64));
    }
    return of(p, MarlinKernels.WIDE, upTo(p.wide(), some ? 32 : p.rows() < MANY_ROWS ? 64 : 128));
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
    if (kind.equals(MarlinKernels.WIDE)) {
      first = ProductPlan.wide(p.first(), p.gated(), rows, lora);
      second = ProductPlan.wide(p.second(), false, rows, lora);
    } else {
      int tiles = p.naive() ? p.pairs() : Math.max(1, (int) (p.pairs() / Math.max(1, p.rows())));
      first =
          ProductPlan.narrow(
              p.first(),
              p.gated(),
              rows,
              p.naive(),
              warps(tiles, p.intermediate(), p.gated() ? 16 : 32),
              rank);
      second =
          ProductPlan.narrow(
              p.second(), false, rows, p.naive(), warps(tiles, p.hidden(), 32), rank);
    }
    int groupTiles = p.experts() <= 16 && p.rows() >= 1024 ? 32 : 8;
    return new MarlinPlan(p.naive(), first, second, groupTiles, shrinks);
  }

  /** As few warps on one output as keep the card full: two blocks a multiprocessor, or nearly. */
  private static int warps(int tiles, int outputs, int each) {
    if ((long) tiles * Math.ceilDiv(outputs, 4 * each) >= FILLED) {
      return 2;
    }
    return (long) tiles * Math.ceilDiv(outputs, 2 * each) >= NEARLY_FILLED ? 4 : 8;
  }
}
