package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;

/** LoRA's second factor times shrunk tokens, for B of one dtype. Thread-safe. */
public interface ExpandKernel {
  /**
   * Some rows of B times some shrunk tokens: {@code dst[j][i] (+)= sum_r b[i][r] * s[j][r]}.
   * Fastest where the rows of B lie side by side (a row step of one element), then where the ranks
   * do. Offsets and steps are in bytes.
   *
   * @param b holds B, and may be read up to its end
   * @param bOffset where its first row begins
   * @param rowStep from one row to the next
   * @param rankStep from one of the rank to the next
   * @param rows of B
   * @param rank of B
   * @param s F32, holds the tokens; a vector behind the last may be read
   * @param sOffset where the first begins
   * @param sStep from one to the next
   * @param dst F32
   * @param at where the results of each token go
   * @param tokens how many
   * @param add to what is there
   */
  void expand(
      MemorySegment b,
      long bOffset,
      long rowStep,
      long rankStep,
      int rows,
      int rank,
      MemorySegment s,
      long sOffset,
      long sStep,
      MemorySegment dst,
      long[] at,
      int tokens,
      boolean add);
}
