package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * A matrix {@code [rows, cols]} whose rows are dense, as the kernels read it.
 *
 * @param segment holds it
 * @param offset where row 0 begins, in bytes
 * @param stride from one row to the next, in bytes
 * @param type of an element
 * @param rows how many
 * @param cols elements of a row
 */
record Rows(MemorySegment segment, long offset, long stride, DType type, int rows, int cols)
    implements Matrix {

  /**
   * A view where rows are dense; otherwise (a transposed file layout) one copy in the same dtype.
   *
   * @param t {@code [rows, cols]} in host memory
   * @param arena where a copy goes
   */
  static Rows of(Tensor t, Arena arena) {
    int rows = Math.toIntExact(t.size(0));
    int cols = Math.toIntExact(t.size(1));
    long size = t.dtype().bits() / 8;
    MemorySegment s = segment(t);
    if (isInPlace(t)) {
      return new Rows(s, t.byteOffset(), t.stride(0) * size, t.dtype(), rows, cols);
    }
    MemorySegment dst = arena.allocate(Math.max(1, size * rows * cols), 64);
    transposeCopy(s, t.byteOffset(), t.stride(0), t.stride(1), rows, cols, (int) size, dst);
    return new Rows(dst, 0, size * cols, t.dtype(), rows, cols);
  }

  /** {@return whether a matrix is read where it lies} */
  static boolean isInPlace(Tensor t) {
    return t.stride(1) == 1 || t.size(1) == 1;
  }

  /** Copies in square blocks, so that both sides stay in cache lines already fetched. */
  private static void transposeCopy(
      MemorySegment s,
      long base,
      long rowStride,
      long colStride,
      int rows,
      int cols,
      int size,
      MemorySegment dst) {
    int block = 32;
    for (int r0 = 0; r0 < rows; r0 += block) {
      int r1 = Math.min(rows, r0 + block);
      for (int c0 = 0; c0 < cols; c0 += block) {
        int c1 = Math.min(cols, c0 + block);
        for (int r = r0; r < r1; r++) {
          for (int c = c0; c < c1; c++) {
            long from = base + size * (r * rowStride + c * colStride);
            long to = (long) size * ((long) r * cols + c);
            if (size == 2) {
              dst.set(
                  ValueLayout.JAVA_SHORT_UNALIGNED,
                  to,
                  s.get(ValueLayout.JAVA_SHORT_UNALIGNED, from));
            } else {
              dst.set(
                  ValueLayout.JAVA_INT_UNALIGNED, to, s.get(ValueLayout.JAVA_INT_UNALIGNED, from));
            }
          }
        }
      }
    }
  }

  /** {@return size of an element} */
  int elementBytes() {
    return type.bits() / 8;
  }

  @Override
  public void widen(Kernels kernels, int row0, int count, int k0, int k, float[] to, int at) {
    TypedKernels typed = kernels.forType(type, segment);
    for (int r = 0; r < count; r++) {
      long from = offset + (row0 + r) * stride + (long) elementBytes() * k0;
      typed.widen(segment, from, to, at + r * Kernels.PANEL_STRIDE, k);
    }
  }

  /** {@return whether one row begins where the one before ends} */
  boolean isDense() {
    return stride == elementBytes() * (long) cols;
  }

  /**
   * {@return whether all rows are the same zeros, as those of weights that have sizes and no
   * contents: who asks what a layer will take}
   */
  boolean isOneRowOfZeros() {
    if (stride != 0) {
      return false;
    }
    long bytes = (long) cols * elementBytes();
    MemorySegment row = segment.asSlice(offset, bytes);
    for (long i = 0; i < bytes; i++) {
      if (row.get(ValueLayout.JAVA_BYTE, i) != 0) {
        return false;
      }
    }
    return true;
  }

  /** Tells the system that a file's pages under the matrix are not needed any more. */
  void letGo() {
    if (segment.isMapped() && segment.isReadOnly() && rows > 0) {
      segment.asSlice(offset, (rows - 1) * stride + (long) cols * elementBytes()).unload();
    }
  }

  /** A vector of any float dtype as F32, dense. */
  static MemorySegment vector(Tensor t, Arena arena) {
    long n = t.size(0);
    MemorySegment dst = arena.allocate(Math.max(4, 4 * n), 64);
    Tensor view = t.isContiguous() && isFloat(t.dtype()) ? t : dense(t);
    KernelSelection.scalar()
        .forType(view.dtype())
        .widen(segment(view), view.byteOffset(), dst, 0, Math.toIntExact(n), 1f);
    return dst;
  }

  private static Tensor dense(Tensor t) {
    return Tensor.ofFloats(t.toFloats(), t.shape());
  }

  /**
   * The segment under a host tensor.
   *
   * @throws IllegalArgumentException if it is on a device
   */
  static MemorySegment segment(Tensor t) {
    if (t.memory() instanceof HostMemory host) {
      return host.segment();
    }
    throw new IllegalArgumentException(t + " is on a device; the CPU backend reads host memory");
  }

  /** Checks a float tensor's dtype. */
  static DType requireFloat(String name, Tensor t) {
    DType d = t.dtype();
    if (!isFloat(d)) {
      throw new IllegalArgumentException(name + " is " + t + ", must be F32, BF16 or F16");
    }
    return d;
  }

  private static boolean isFloat(DType d) {
    return d == DType.F32 || d == DType.BF16 || d == DType.F16;
  }
}
