package io.moe4j.backend.triton;

import io.moe4j.backend.triton.TileTable.Problem;
import io.moe4j.cuda.ops.Shrink;

/**
 * The tiles that were fastest for forwards of one size. What follows from the sizes (columns,
 * chunks of ranks, single pairs or sorted) is not kept.
 *
 * @param tokens {@code T}
 * @param adapters in slots, 0 = the base model
 * @param rank of them, padded to a page; 0 = the base model
 * @param w13 tile of the first GEMM
 * @param w2 tile of the second
 * @param sums whether w2 and the weighted sum are one launch, {@code w2} unused
 * @param permute whether the hidden states are copied into sorted order first
 * @param groupTiles neighbouring row tiles
 * @param shrinkRows rows of a shrink tile
 * @param shrink13 first shrink
 * @param shrink2 second shrink
 * @param micros of a forward, as measured
 * @param builtInMicros of a forward with the built-in choice, measured beside it
 */
record TunedEntry(
    int tokens,
    int adapters,
    int rank,
    String w13,
    String w2,
    boolean sums,
    boolean permute,
    int groupTiles,
    int shrinkRows,
    Width shrink13,
    Width shrink2,
    double micros,
    double builtInMicros) {
  /**
   * A shrink's choice.
   *
   * @param ranks a program computes
   * @param step of the contraction
   * @param splits along the contraction
   */
  record Width(int ranks, int step, int splits) {
    static final Width NONE = new Width(0, 0, 0);

    static Width of(Shrink s) {
      return new Width(s.ranks(), s.step(), s.splits());
    }
  }

  static TunedEntry of(Problem p, TilePlan plan, double micros, double builtInMicros) {
    return new TunedEntry(
        p.tokens(),
        p.slots(),
        p.rank(),
        plan.w13(),
        plan.w2(),
        plan.sums(),
        plan.permute(),
        plan.groupTiles(),
        plan.shrinkRows(),
        p.lora() ? Width.of(plan.shrink13()) : Width.NONE,
        p.lora() ? Width.of(plan.shrink2()) : Width.NONE,
        micros,
        builtInMicros);
  }

  /** {@return the plan of a forward with these tiles} */
  TilePlan plan(Problem p) {
    return new TilePlan(
        p.tuned(),
        TileTable.naive(p),
        w13,
        w2,
        TilePlan.rows(w13),
        TilePlan.columns(w13),
        TilePlan.columns(w2),
        sums,
        permute,
        groupTiles,
        shrinkRows,
        p.lora() ? shrink(shrink13, p, p.gated() ? 2 * p.rank() : p.rank()) : Shrink.NONE,
        p.lora() ? shrink(shrink2, p, p.rank()) : Shrink.NONE);
  }

  private static Shrink shrink(Width w, Problem p, int total) {
    return new Shrink(
        w.ranks(), w.step(), !TileTable.whole(p), Math.ceilDiv(total, w.ranks()), w.splits());
  }

  /** Whether it answers for the same forwards as another. */
  boolean sameSizes(TunedEntry other) {
    return tokens == other.tokens && adapters == other.adapters && rank == other.rank;
  }
}
