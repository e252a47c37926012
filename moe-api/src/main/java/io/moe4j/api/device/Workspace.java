package io.moe4j.api.device;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.util.Objects;

/**
 * Scratch memory of one call at a time, owned by its allocator (the layer's session).
 * Contents are undefined at entry.
 *
 * @param memory on the call's device, aligned to 64 bytes or more
 * @since 0.1.0
 */
public record Workspace(Memory memory) {
  /** Every part handed out by {@link #tensor} should begin at a multiple of this many bytes. */
  public static final int ALIGNMENT = 64;

  /**
   * Checks the components.
   *
   * @param memory on the call's device
   */
  public Workspace {
    Objects.requireNonNull(memory, "memory");
  }

  /**
   * A contiguous tensor inside the workspace.
   *
   * @param byteOffset where it begins
   * @param dtype element type
   * @param shape sizes
   * @return the view
   * @throws IllegalArgumentException if the workspace is too short
   */
  public Tensor tensor(long byteOffset, DType dtype, long... shape) {
    long[] strides = new long[shape.length];
    long step = 1;
    for (int d = shape.length - 1; d >= 0; d--) {
      strides[d] = step;
      step *= Math.max(1, shape[d]);
    }
    return Tensor.strided(dtype, memory, byteOffset, shape, strides);
  }

  /**
   * {@return a size rounded up to {@link #ALIGNMENT}}
   *
   * @param bytes not negative
   */
  public static long align(long bytes) {
    return Math.addExact(bytes, ALIGNMENT - 1) & -ALIGNMENT;
  }
}
