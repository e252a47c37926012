package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;

/** One implementation of the backend's arithmetic. Stateless and thread-safe. */
public interface Kernels {
  /** Rows of a panel product. */
  int PANEL_ROWS = 12;

  /** The longest product of one {@link #panel} call; longer ones add up several. */
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
   * @param vectors 1 or 2
   * @param k at most {@link #PANEL_K}
   * @param c F32 {@code [12, tokens]}
   * @param cOffset bytes
   * @param next what will be read after this call: {@code k * step + 8} bytes of it may be fetched
   *     in passing
   * @param nextOffset bytes
   * @param step bytes for each of the {@code k}; 0 = nothing to fetch
   * @return something that depends on what was fetched, so that it cannot be left out
   */
  long panel(
      float[] w,
      int w0,
      MemorySegment x,
      long xOffset,
      int vectors,
      int k,
      MemorySegment c,
      long cOffset,
      MemorySegment next,
      long nextOffset,
      long step);

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
