package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;

/** A linear map {@code [rows, cols]} as the kernels in Java read it. Safe for threads. */
sealed interface Matrix permits Rows, CodedRows {
  /** {@return outputs} */
  int rows();

  /** {@return inputs} */
  int cols();

  /**
   * Widens a stretch of some rows to F32.
   *
   * @param kernels of the caller
   * @param row0 first row
   * @param count rows
   * @param k0 first column
   * @param k columns, at most {@link Kernels#PANEL_K}
   * @param to where they go, {@link Kernels#PANEL_STRIDE} apart
   * @param at index of the first
   */
  void widen(Kernels kernels, int row0, int count, int k0, int k, float[] to, int at);
}
