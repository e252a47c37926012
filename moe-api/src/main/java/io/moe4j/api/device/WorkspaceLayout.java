package io.moe4j.api.device;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;

/**
 * Carves a {@link Workspace} into parts that do not overlap. Parts are reserved one after the
 * other, each at a multiple of {@link Workspace#ALIGNMENT}; the layout holds no memory. It depends
 * on nothing but the sizes, so whoever sizes a workspace and the call that uses it get the same
 * one. For one thread while parts are reserved; parts are immutable.
 *
 * @since 0.2.0
 */
public final class WorkspaceLayout {
  private long end;

  /** An empty layout. */
  public WorkspaceLayout() {}

  /**
   * Reserves bytes.
   *
   * @param bytes not negative
   * @return the offset of the first one
   * @throws IllegalArgumentException if {@code bytes} is negative
   * @throws ArithmeticException if the layout would be larger than 2^63 - 1 bytes
   */
  public long reserve(long bytes) {
    if (bytes < 0) {
      throw new IllegalArgumentException("bytes is " + bytes + ", must not be negative");
    }
    long offset = end;
    end = Math.addExact(offset, Workspace.align(bytes));
    return offset;
  }

  /**
   * Reserves a contiguous tensor.
   *
   * @param dtype element type
   * @param shape sizes, none negative
   * @return the part
   * @throws IllegalArgumentException if a size is negative
   * @throws ArithmeticException if the layout would be larger than 2^63 - 1 bytes
   */
  public Part reserve(DType dtype, long... shape) {
    long bytes = byteSize(dtype, shape);
    return new Part(reserve(bytes), bytes, dtype, shape.clone());
  }

  /** {@return bytes of all parts so far, a multiple of {@link Workspace#ALIGNMENT}} */
  public long byteSize() {
    return end;
  }

  private static long byteSize(DType dtype, long[] shape) {
    long elements = 1;
    for (long size : shape) {
      if (size < 0) {
        throw new IllegalArgumentException(
            "shape is " + Arrays.toString(shape) + ", no size may be negative");
      }
      elements = Math.multiplyExact(elements, size);
    }
    return dtype.byteSize(elements);
  }

  /** A tensor's place in a workspace. */
  public static final class Part {
    private final long offset;
    private final long byteSize;
    private final DType dtype;
    private final long[] shape;

    private Part(long offset, long byteSize, DType dtype, long[] shape) {
      this.offset = offset;
      this.byteSize = byteSize;
      this.dtype = dtype;
      this.shape = shape;
    }

    /** {@return the first byte's offset in the workspace} */
    public long offset() {
      return offset;
    }

    /** {@return bytes, without what follows up to the next part} */
    public long byteSize() {
      return byteSize;
    }

    /**
     * The tensor.
     *
     * @param workspace at least as long as the layout
     * @return a view of the reserved shape
     * @throws IllegalArgumentException if the workspace is too short
     */
    public Tensor in(Workspace workspace) {
      return workspace.tensor(offset, dtype, shape);
    }

    /**
     * A tensor of another shape at the same place, for a call that is smaller than what was
     * reserved.
     *
     * @param workspace at least as long as the layout
     * @param smaller sizes; no more bytes than were reserved
     * @return a contiguous view
     * @throws IllegalArgumentException if the shape needs more than was reserved, or the workspace
     *     is too short
     */
    public Tensor in(Workspace workspace, long... smaller) {
      long needed = WorkspaceLayout.byteSize(dtype, smaller);
      if (needed > byteSize) {
        throw new IllegalArgumentException(
            dtype
                + Arrays.toString(smaller)
                + " needs "
                + needed
                + " bytes, "
                + this
                + " has "
                + byteSize);
      }
      return workspace.tensor(offset, dtype, smaller);
    }

    /**
     * Like {@code F32[8, 64] at 128}.
     *
     * @return dtype, shape and offset
     */
    @Override
    public String toString() {
      return dtype + Arrays.toString(shape) + " at " + offset;
    }
  }
}
