package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;

/**
 * Kernels over a matrix of one dtype (F32, BF16 or F16). Offsets and distances are in bytes, counts
 * in elements; nothing needs to be aligned. Activations and results are F32. Thread-safe.
 */
public interface TypedKernels {
  /** Tokens that one call of {@link #dot} takes at most; {@link Kernels#dotTokens} are best. */
  int MAX_TOKENS = 6;

  /** Floats that {@link #dot} needs to work. */
  int DOT_SCRATCH = MAX_TOKENS * (2048 + 16) + 4 * MAX_TOKENS * 64;

  /**
   * Some rows of a matrix times some vectors: {@code out[j][r] = sum_i w[r][i] * x[j][i]}.
   *
   * @param w holds the rows
   * @param wOffset where row 0 begins
   * @param wStride from one row to the next
   * @param rows how many
   * @param x F32, holds the vectors
   * @param at where each vector begins
   * @param tokens {@code 1..MAX_TOKENS}
   * @param k length of rows and vectors
   * @param out where results go
   * @param outOffset result of row 0 and vector 0; rows follow densely
   * @param outStride from one vector's results to the next's
   * @param scratch {@link #DOT_SCRATCH} floats, of the calling thread
   */
  void dot(
      MemorySegment w,
      long wOffset,
      long wStride,
      int rows,
      MemorySegment x,
      long[] at,
      int tokens,
      int k,
      MemorySegment out,
      long outOffset,
      long outStride,
      float[] scratch);

  /**
   * Widens to F32, exactly: {@code dst[i] = src[i] * scale}; a scale of 1 keeps every bit.
   *
   * @param src elements of this dtype
   * @param srcOffset where they begin
   * @param dst F32
   * @param dstOffset where they go
   * @param n how many
   * @param scale factor
   */
  void widen(
      MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n, float scale);

  /**
   * Widens to F32, exactly.
   *
   * @param src elements of this dtype
   * @param srcOffset where they begin
   * @param dst where they go
   * @param at index of the first there
   * @param n how many
   */
  void widen(MemorySegment src, long srcOffset, float[] dst, int at, int n);

  /**
   * Adds a multiple: {@code dst[i] += factor * src[i]}.
   *
   * @param factor the multiple
   * @param src elements of this dtype
   * @param srcOffset where they begin
   * @param dst F32
   * @param dstOffset where they are added
   * @param n how many
   */
  void axpy(
      float factor, MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n);
}
