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
   * {@return the kernels for matrices of a dtype}
   *
   * @param dtype F32, BF16 or F16
   */
  TypedKernels forType(DType dtype);

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
   * Twelve rows of LoRA B times shrunk tokens, added to some lanes of one vector of a panel's sums:
   * {@code c[r][t] += sum_i b[i][r] * s[i][t]} for {@code from <= t < to}.
   *
   * @param b {@code [rank, rows]}
   * @param b0 index of the first row's first element
   * @param bStride elements from one of the rank to the next
   * @param s F32, a vector of tokens for each of the rank
   * @param sOffset bytes
   * @param sStride bytes from one of the rank to the next
   * @param rank columns of B
   * @param c sums
   * @param c0 index of row 0 and lane 0; rows 1..5 follow
   * @param c6 index of row 6 and lane 0; rows 7..11 follow
   * @param cStride elements from one row to the next
   * @param from first lane, at least 0
   * @param to behind the last lane, at most {@link #lanes}
   */
  void expand(
      float[] b,
      int b0,
      int bStride,
      MemorySegment s,
      long sOffset,
      long sStride,
      int rank,
      float[] c,
      int c0,
      int c6,
      int cStride,
      int from,
      int to);

  /**
   * LoRA B times one shrunk token: {@code dst[i] += sum_r s[r] * b[r][i]}.
   *
   * @param b {@code [rank, n]}
   * @param bStride elements from one of the rank to the next
   * @param s F32
   * @param sOffset bytes
   * @param rank how many
   * @param dst F32
   * @param dstOffset bytes
   * @param n elements
   */
  void expandRow(
      float[] b,
      int bStride,
      MemorySegment s,
      long sOffset,
      int rank,
      MemorySegment dst,
      long dstOffset,
      int n);

  /**
   * A square block of {@link #lanes} rows and columns turned over: {@code dst[j][i] = src[i][j]}.
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
   * {@link #transpose(float[], int, int, MemorySegment, long, long, int, int)} of a whole block, to
   * an array.
   *
   * @param src the block; afterwards it holds something else
   * @param at index of its first element
   * @param stride elements from one row to the next
   * @param dst where it goes
   * @param to index of the first element there
   * @param dstStride elements from one row to the next
   */
  void transpose(float[] src, int at, int stride, float[] dst, int to, int dstStride);

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
