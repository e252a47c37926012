package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;

/** One implementation of the backend's arithmetic. Stateless and thread-safe. */
public interface Kernels {
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
