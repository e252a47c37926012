package io.moe4j.cuda.ops;

/**
 * How one shrink ({@code s = x . A^T}) is cut into programs.
 *
 * @param ranks ranks a program computes (of two projections together where there are two)
 * @param step elements of the contraction a step
 * @param any whether the contraction need not be a multiple of the step
 * @param chunks programs along the ranks
 * @param splits programs along the contraction
 * @since 0.2.0
 */
public record Shrink(int ranks, int step, boolean any, int chunks, int splits) {
  /** Of a forward without LoRA. */
  public static final Shrink NONE = new Shrink(1, 1, false, 0, 1);

  /** {@return ranks, step and splits, for a log} */
  public String text() {
    return ranks + "x" + step + " / " + splits;
  }
}
