package io.moe4j.backend.triton;

import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.ops.ShrinkPlan;

/**
 * How one forward is launched: a pure function of sizes, see {@link TileTable}.
 *
 * @param tuned whether the tiles are those tuned for Hopper
 * @param naive whether every pair is a tile of its own, without sorting: for few pairs
 * @param w13 tile of the first GEMM, by its name in {@code variants.py}
 * @param w2 tile of the second; same rows as {@code w13} (the sorted lists are made for one height)
 * @param tileRows rows of both
 * @param tileColumns13 columns of the first, gate and up counted once
 * @param tileColumns2 columns of the second
 * @param sums whether w2 and the weighted sum are one launch ({@code down.cu}), {@code w2} unused
 * @param permute whether the hidden states are copied into sorted order first
 * @param groupTiles neighbouring row tiles that run through the columns together, for the cache
 * @param shrinkRows rows of a shrink tile
 * @param shrink13 first shrink
 * @param shrink2 second shrink
 */
record TilePlan(
    boolean tuned,
    boolean naive,
    String w13,
    String w2,
    int tileRows,
    int tileColumns13,
    int tileColumns2,
    boolean sums,
    boolean permute,
    int groupTiles,
    int shrinkRows,
    Shrink shrink13,
    Shrink shrink2) {
  /** What a user reads: the parts that can differ. */
  String text() {
    return w13
        + " + "
        + (sums ? "w2 with the sum" : w2)
        + (permute ? ", permuted" : "")
        + ", groups of "
        + groupTiles
        + (shrink13.chunks() == 0
            ? ""
            : ", shrink " + shrinkRows + " rows " + shrink13.text() + " + " + shrink2.text());
  }

  /** {@return the same with other shrinks} */
  TilePlan with(Shrink first, Shrink second) {
    return new TilePlan(
        tuned,
        naive,
        w13,
        w2,
        tileRows,
        tileColumns13,
        tileColumns2,
        sums,
        permute,
        groupTiles,
        shrinkRows,
        first,
        second);
  }

  /** {@return the same with w2 and the weighted sum as two launches, or as one} */
  TilePlan withSums(boolean one) {
    return new TilePlan(
        tuned,
        naive,
        w13,
        w2,
        tileRows,
        tileColumns13,
        tileColumns2,
        one,
        permute,
        groupTiles,
        shrinkRows,
        shrink13,
        shrink2);
  }

  /** {@return rows of a tile, from its name} */
  static int rows(String tile) {
    return Integer.parseInt(tile, 0, tile.indexOf('x'), 10);
  }

  /** {@return columns of a tile, from its name} */
  static int columns(String tile) {
    int from = tile.indexOf('x') + 1;
    return Integer.parseInt(tile, from, tile.indexOf('x', from), 10);
  }

  /** {@return elements of the contraction a step of a tile takes, from its name} */
  static int step(String tile) {
    int from = tile.indexOf('x', tile.indexOf('x') + 1) + 1;
    return Integer.parseInt(tile, from, tile.indexOf('-'), 10);
  }

  /** {@return whether a tile takes contractions that are no multiple of its step} */
  static boolean any(String tile) {
    return tile.endsWith("-any");
  }

  /** {@return how its shrinks are launched} */
  ShrinkPlan shrinks() {
    return new ShrinkPlan(naive, !permute, sums, shrinkRows, shrink13, shrink2);
  }
}
