package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;

/** One implementation of the backend's arithmetic. Stateless and thread-safe. */
public interface Kernels {
  /** Rows of a {@link #panel} product. */
  int PANEL_ROWS = 12;

  /** The longest row that is kept widened; longer ones are multiplied in several stretches. */
  int PANEL_K = 2048;

  /** Floats from one row of {@link #panel}'s weights to the next. */
  int PANEL_STRIDE = PANEL_K + 16;

  /** {@return what it is, for logs: {@code Vector API, 512 bits} or {@code scalar}} */
  String description();

  /** {@return floats in a vector; 1 without vectors} */
  int lanes();

  /**
   * {@return the kernels for matrices of a dtype in memory of one kind: right for all memory, fast
   * where matrices are of that kind and everything else was allocated}
   *
   * @param dtype F32, BF16 or F16
   * @param kind a segment of that kind: allocated, mapped from a file, an array
   */
  TypedKernels forType(DType dtype, MemorySegment kind);

  /**
   * {@return the kernels for matrices of a dtype in allocated memory}
   *
   * @param dtype F32, BF16 or F16
   */
  default TypedKernels forType(DType dtype) {
    return forType(dtype, MemorySegment.NULL);
  }

  /**
   * {@return the kernel for LoRA factors B of a dtype in memory of one kind}
   *
   * @param dtype F32, BF16 or F16
   * @param kind as {@link #forType} takes
   */
  ExpandKernel expandOf(DType dtype, MemorySegment kind);

  /**
   * Twelve rows times a panel of {@code vectors * lanes()} tokens, added to {@code c}: {@code
   * c[r][t] += sum_i w[r][i] * x[i][t]}.
   *
   * @param w {@link #PANEL_ROWS} rows, {@link #PANEL_STRIDE} elements apart
   * @param w0 index of row 0's first element
   * @param x F32 {@code [k, tokens]}, tokens densely
   * @param xOffset bytes
   * @param vectors 1, 2 or 4; 4 only where {@link #panelVectors} says so
   * @param k how many columns
   * @param c {@code [12, tokens]}
   * @param c0 index of its first element
   */
  void panel(
      float[] w, int w0, MemorySegment x, long xOffset, int vectors, int k, float[] c, int c0);

  /** {@return vectors of tokens in the widest panel that {@link #panel} does without spilling} */
  default int panelVectors() {
    return lanes() >= 16 ? 4 : 2;
  }

  /** {@return how many tokens {@link TypedKernels#dot} takes best at once} */
  default int dotTokens() {
    return lanes() == 8 ? 3 : TypedKernels.MAX_TOKENS;
  }

  /** Tokens that {@link #rows} takes at most. */
  int ROW_TOKENS = 4;

  /** Floats of {@link #rows}'s {@code x}: the tokens, then sixteen vectors of up to 64 lanes. */
  int ROW_SCRATCH = ROW_TOKENS * (PANEL_STRIDE + 4 * 64);

  /**
   * Widened rows times a few tokens: {@code out[j][r] (+)= sum_i w[r][i] * x[j][i]}.
   *
   * @param w rows, {@link #PANEL_STRIDE} elements apart
   * @param w0 index of row 0's first element
   * @param rows how many, a multiple of four
   * @param x {@link #ROW_SCRATCH} floats that begin with {@link #ROW_TOKENS} vectors, {@link
   *     #PANEL_STRIDE} elements apart; vectors beyond {@code tokens} may hold anything, and what
   *     follows them is written over
   * @param tokens of which results are written
   * @param k how many columns
   * @param out F32
   * @param outOffset bytes
   * @param outStride bytes from one token to the next
   * @param add to what is there
   */
  void rows(
      float[] w,
      int w0,
      int rows,
      float[] x,
      int tokens,
      int k,
      MemorySegment out,
      long outOffset,
      long outStride,
      boolean add);

  /**
   * Transposes a square block of {@link #lanes} rows and columns: {@code dst[j][i] = src[i][j]}.
   *
   * @param src the block; afterwards it holds something else
   * @param at index of its first element
   * @param stride elements from one row to the next
   * @param dst F32
   * @param dstOffset bytes
   * @param dstStride bytes from one row to the next
   * @param rows of dst that are written
   * @param columns of dst that are written
   */
  void transpose(
      float[] src,
      int at,
      int stride,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      int rows,
      int columns);

  /**
   * Transposes a block of up to {@link #lanes} rows and columns, from memory to memory, zeros
   * where there are no rows: {@code dst[row(first + j)][i] = src[i][j]}, where the rows of {@code
   * dst} come by six: {@code row(r) = r / 6 * jump + r % 6}.
   *
   * @param src F32
   * @param srcOffset bytes
   * @param srcStride bytes from one row to the next
   * @param turned room for a square block
   * @param dst F32; whole vectors are written
   * @param dstOffset bytes, of row 0
   * @param dstStride bytes from one row to the next
   * @param first which row of dst the block's first column goes to
   * @param jump rows from one six to the next; 6 if they lie densely
   * @param rows of dst that are written
   */
  void transpose(
      MemorySegment src,
      long srcOffset,
      long srcStride,
      float[] turned,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      int first,
      int jump,
      int rows);

  /**
   * The function between the w13 and the w2 product, in f32. {@code gate} is not read where the
   * activation has none; {@code dst} may be either input.
   *
   * @param activation which function
   * @param gate F32
   * @param gateOffset bytes
   * @param up F32
   * @param upOffset bytes
   * @param dst F32
   * @param dstOffset bytes
   * @param n elements
   */
  void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      MemorySegment dst,
      long dstOffset,
      int n);
}
