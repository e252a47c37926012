package io.moe4j.cuda.ops;

/**
 * How the two shrinks of a forward are launched.
 *
 * @param naive whether every pair is a tile of its own, without a sort; partial sums then stay in
 *     memory for the consumer to add up, {@code [P, splits, width]} in f32
 * @param gather whether the first one reads tokens rather than rows in the order of the sort
 * @param early whether the consumer of the second, if {@code naive}, may start before it ends
 * @param rows of a tile
 * @param first of the w13 projections
 * @param second of the down projection
 * @since 0.2.0
 */
public record ShrinkPlan(
    boolean naive, boolean gather, boolean early, int rows, Shrink first, Shrink second) {
  /** {@return arrival counters that a forward uses} */
  int counters(PairBatch b) {
    return first.splits() > 1 || second.splits() > 1
        ? b.maxShrinkTiles(rows) * Math.max(first.chunks(), second.chunks())
        : 0;
  }
}
