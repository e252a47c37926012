package io.moe4j.tck;

import io.moe4j.api.tensor.DType;

/**
 * How far a result may be from the float64 truth. Derived from the dtypes and the longest sum, the
 * same for every backend; nobody can ask for more.
 *
 * <p>With {@code u} the unit roundoff of a dtype ({@code 2^-24, 2^-11, 2^-8} for F32, F16, BF16):
 *
 * <ul>
 *   <li>A backend may keep what passes between its steps in the dtype of the hidden states. On the
 *       way through a block a value is rounded at most nine times (w13, the rank vector and the sum
 *       of its LoRA, activation, w2, the same for its LoRA, weighting, sum over k), each time by at
 *       most {@code u} and {@code u / sqrt(3)} in the root mean square, independently: {@code
 *       sqrt(9 / 3) u}. The activation may double a relative error (squared ReLU, SiLU times up),
 *       which gives {@code 3.5 u}.
 *   <li>A sum of {@code n} terms of random sign accumulated in f32 is off by {@code sqrt(n) u(F32)}
 *       relative to its result; the block has two in a row, the activation between them: {@code 3
 *       sqrt(n) u(F32)}.
 *   <li>Storing rounds by {@code u} of the output's dtype.
 * </ul>
 *
 * The bound on the relative L2 error of a row is twice the sum of these. A single element may be
 * off by four times that (four standard deviations), relative to the row's root mean square or to
 * itself, whichever is larger. Mistakes are of another order: the cases are made so that each
 * ingredient (an adapter, a bias, a weight, a clamp) carries a good part of the result.
 */
final class Tolerance {
  /** Largest error of one element, in row tolerances. */
  static final double ELEMENT = 4;

  private Tolerance() {}

  /**
   * {@return the bound on a row's relative L2 error}
   *
   * @param hidden dtype of the hidden states, and of what a backend may keep between steps
   * @param output dtype of the result
   * @param longestSum the largest of {@code H}, {@code I} and the ranks
   */
  static double block(DType hidden, DType output, long longestSum) {
    return 2
        * (3.5 * unitRoundoff(hidden)
            + 3 * Math.sqrt((double) longestSum) * unitRoundoff(DType.F32)
            + unitRoundoff(output));
  }

  /**
   * {@return the bound for one linear map, which is to be accumulated and stored in f32}
   *
   * @param longestSum terms
   */
  static double linear(long longestSum) {
    return 2 * (Math.sqrt((double) longestSum) + 1) * unitRoundoff(DType.F32);
  }

  static double unitRoundoff(DType dtype) {
    return switch (dtype) {
      case F32 -> 0x1p-24;
      case F16 -> 0x1p-11;
      case BF16 -> 0x1p-8;
      default -> throw new IllegalArgumentException("no tolerance for " + dtype);
    };
  }
}
