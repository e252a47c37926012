package io.moe4j.cuda.ops;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.List;

/**
 * The weighted sum over the experts of each token, of BF16 or F16 rows that a grouped product
 * wrote, in f32 and in the order of k; see {@code combine.py}. For rows of any type and for experts
 * that were given batches there is {@link ElementwiseKernels#combine}. Safe for several threads.
 *
 * @since 0.2.0
 */
public final class CombineKernel {
  private static final int WIDE = 1024;
  private static final int NARROW = 256;
  private static final int WIDE_TOKENS = 64;

  /** Pairs a token that it is compiled for, on capability 9.0. */
  private static final List<Integer> UNROLLED = List.of(1, 2, 4, 6, 8);

  private final ExpertKernels kernels;
  private final String type;

  /**
   * @param kernels where they are
   * @param type of the rows, BF16 or F16
   */
  public CombineKernel(ExpertKernels kernels, DType type) {
    this.kernels = kernels;
    this.type = SharedKernels.name(type);
  }

  /**
   * Sums.
   *
   * @param b the forward
   * @param naive whether the rows are in the order of the pairs, not of the sort
   * @param y address of {@code [P, H]}, 16-byte aligned
   * @param posOf address of {@link TileLists#posOf}
   * @param weighted whether {@code b.weights} are applied here
   * @param keep whether rows of a token without any pair are left alone instead of zeroed; for K =
   *     1
   * @param output {@code [T, H]} of the rows' type or F32, contiguous, overwritten
   * @param hidden {@code H}, a multiple of 8
   */
  public void run(
      PairBatch b,
      boolean naive,
      long y,
      long posOf,
      boolean weighted,
      boolean keep,
      Tensor output,
      int hidden) {
    boolean wide = !naive && b.tokens() >= WIDE_TOKENS;
    int block = wide ? WIDE : NARROW;
    boolean unrolled = kernels.hopper() && UNROLLED.contains(b.topK());
    kernels
        .get(
            "combine",
            "type",
            type,
            "out",
            SharedKernels.name(output.dtype()),
            "k",
            unrolled ? Integer.toString(b.topK()) : "0",
            "naive",
            naive ? "1" : "0",
            "width",
            Integer.toString(block))
        .begin()
        .pointer(y)
        .pointer(posOf)
        .pointer(b.ids())
        .pointer(b.expertMap())
        .pointer(b.weights())
        .pointer(output)
        .i32(b.hasMap())
        .i32(weighted ? 0 : 1)
        .i32(keep ? 1 : 0)
        .i32(hidden)
        .i32(b.topK())
        .i32(b.globalExperts())
        .i32(b.experts())
        .launch(b.stream(), b.tokens(), Math.ceilDiv(hidden, block), 1);
  }
}
