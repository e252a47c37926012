package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;

/** One implementation of the backend's arithmetic. Stateless and thread-safe. */
public interface Kernels {
  /** Rows of a panel product. */
  int PANEL_ROWS = 12;

  /** The longest dot product of one panel call; longer ones add up several calls. */
  int PANEL_K = 4096;

  /**
   * Floats from one row of {@link #panel}'s weights to the next: a constant, and not a multiple of
   * a page, so that rows do not fall on the same cache sets.
   */
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
   * @param w F32, {@link #PANEL_ROWS} rows {@link #PANEL_STRIDE} floats apart
   * @param wOffset bytes
   * @param x F32 {@code [k, tokens]}, tokens densely
   * @param xOffset bytes
   * @param vectors 1 or 2
   * @param k even, at most {@link #PANEL_K}
   * @param c F32 {@code [12, tokens]}
   * @param cOffset bytes
   * @param nextA what will be read after this call: {@code k * step + 8} bytes from {@code a0} on,
   *     and from {@code b0} on of {@code nextB}, may be fetched in passing
   * @param a0 bytes
   * @param nextB see {@code nextA}
   * @param b0 bytes
   * @param step bytes for each of the {@code k}; 0 = nothing to fetch
   * @return something that depends on what was fetched, so that it cannot be left out
   */
  long panel(
      MemorySegment w,
      long wOffset,
      MemorySegment x,
      long xOffset,
      int vectors,
      int k,
      MemorySegment c,
      long cOffset,
      MemorySegment nextA,
      long a0,
      MemorySegment nextB,
      long b0,
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
