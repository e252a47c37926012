package io.moe4j.cuda.ops;

import io.moe4j.api.tensor.DType;

/**
 * {@code s = x . A[slot, expert]^T} for the pairs that have an adapter: the first half of fused
 * LoRA; see {@code shrink.py}. The grouped product that follows adds {@code s . B^T} in its
 * accumulators. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class ShrinkKernel {
  private final ExpertKernels kernels;
  private final String type;
  private final boolean gated;

  /**
   * @param kernels where they are
   * @param type of x and the factors, BF16 or F16
   * @param gated whether w13 has a gate and an up projection
   */
  public ShrinkKernel(ExpertKernels kernels, DType type, boolean gated) {
    this.kernels = kernels;
    this.type = SharedKernels.name(type);
    this.gated = gated;
  }

  /**
   * {@return elements of a row of {@code s}, and of its partial sums}
   *
   * @param b the forward
   * @param first of the w13 projections, or of down
   */
  public int width(PairBatch b, boolean first) {
    return first && gated ? 2 * b.rank() : b.rank();
  }

  /**
   * {@return splits that fit the room for partial sums; what the consumer has to add up}
   *
   * @param b the forward
   * @param plan of its shrinks
   * @param first of the w13 projections, or of down
   * @throws IllegalArgumentException if even one does not fit
   */
  public int splits(PairBatch b, ShrinkPlan plan, boolean first) {
    Shrink s = first ? plan.first() : plan.second();
    int splits = s.splits();
    long bytes =
        plan.naive()
            ? Float.BYTES * (long) b.pairs() * width(b, first)
            : Float.BYTES
                * (long) b.maxShrinkTiles(plan.rows())
                * s.chunks()
                * plan.rows()
                * s.ranks();
    while (splits > 1 && bytes * splits > ShrinkScratch.PARTIAL_BYTES) {
      splits /= 2;
    }
    if (plan.naive() && bytes > ShrinkScratch.PARTIAL_BYTES) {
      throw new IllegalArgumentException(
          b.pairs()
              + " pairs of rank "
              + b.rank()
              + " need "
              + bytes
              + " bytes for partial sums"
              + (first ? " of w13" : " of w2"));
    }
    return splits;
  }

  /**
   * Shrinks.
   *
   * @param b the forward
   * @param plan of its shrinks
   * @param first of the w13 projections, or of down
   * @param x address of {@code [T, depth]} ({@code gather} and first), else {@code [P, depth]}
   * @param depth the contraction
   * @param base address of the workspace
   * @param lists of the sort in it
   * @param scratch for the result in it
   */
  public void run(
      PairBatch b,
      ShrinkPlan plan,
      boolean first,
      long x,
      int depth,
      long base,
      TileLists lists,
      ShrinkScratch scratch) {
    Shrink s = first ? plan.first() : plan.second();
    int width = width(b, first);
    int splits = splits(b, plan, first);
    int tiles = plan.naive() ? b.pairs() : b.maxShrinkTiles(plan.rows());
    kernels
        .get(
            "shrink",
            "type",
            type,
            "of",
            !first ? "down" : gated ? "pair" : "single",
            "step",
            Integer.toString(s.step()),
            "any",
            s.any() ? "1" : "0",
            "rows",
            Integer.toString(plan.rows()),
            "ranks",
            Integer.toString(s.ranks()),
            "gather",
            first && plan.gather() ? "1" : "0",
            "naive",
            plan.naive() ? "1" : "0")
        .begin()
        .pointer(0)
        .pointer(x)
        .pointer(base + (first ? scratch.first() : scratch.second()))
        .pointer(base + scratch.partial())
        .pointer(base + lists.arrived())
        .pointer(b.table())
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.mapping())
        .pointer(base + lists.pairs())
        .pointer(base + lists.shrinkTiles())
        .pointer(base + lists.nums())
        .i32(b.hasMap())
        .i32(b.topK())
        .i32(depth)
        .i32(b.globalExperts())
        .i32(b.experts())
        .i32(b.slots())
        .i32(width)
        .i32(b.rank())
        .i32(s.chunks())
        .i32(splits)
        .i32(plan.early() ? 1 : 0)
        .launch(b.stream(), Math.multiplyExact(Math.multiplyExact(tiles, s.chunks()), splits));
  }
}
