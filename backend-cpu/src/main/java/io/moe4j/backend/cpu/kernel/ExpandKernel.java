package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;

/** What LoRA's second factor needs, for B of one dtype (F32, BF16 or F16). Thread-safe. */
public interface ExpandKernel {
  /**
   * A matrix of short rows times one vector: {@code dst[i] (+)= sum_r b[i][r] * s[r]}. LoRA's B is
   * such a matrix.
   *
   * @param b holds the rows, and may be read up to its end
   * @param bOffset where row 0 begins
   * @param bStride from one row to the next
   * @param rows how many
   * @param rank length of a row
   * @param s F32
   * @param sOffset where it begins
   * @param dst F32
   * @param dstOffset result of row 0; the others follow densely
   * @param add to what is there
   */
  void expand(
      MemorySegment b,
      long bOffset,
      long bStride,
      int rows,
      int rank,
      MemorySegment s,
      long sOffset,
      MemorySegment dst,
      long dstOffset,
      boolean add);

  /**
   * The same with a matrix that lies the other way, for a few vectors at once: {@code dst[j][i]
   * (+)= sum_r b[r][i] * s[j][r]}.
   *
   * @param b holds the rows, one for each of the rank
   * @param bOffset where row 0 begins
   * @param bStride from one row to the next
   * @param n length of a row
   * @param rank rows
   * @param s F32
   * @param sOffset where the first vector begins
   * @param sStride from one vector to the next
   * @param dst F32
   * @param at where the results of each vector go
   * @param tokens how many vectors
   * @param dstOffset added to each of {@code at}
   * @param add to what is there
   */
  void expandColumns(
      MemorySegment b,
      long bOffset,
      long bStride,
      int n,
      int rank,
      MemorySegment s,
      long sOffset,
      long sStride,
      MemorySegment dst,
      long[] at,
      int tokens,
      long dstOffset,
      boolean add);
}
