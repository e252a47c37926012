package io.moe4j.lora;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Small helpers on host tensors. */
final class Tensors {
  private Tensors() {}

  static MemorySegment segment(Tensor t) {
    if (t.memory() instanceof HostMemory host) {
      return host.segment();
    }
    throw new IllegalArgumentException(t + " is on a device; the CPU needs host memory");
  }

  static boolean isFloat(DType t) {
    return t == DType.F32 || t == DType.BF16 || t == DType.F16;
  }

  /** Whether both show the same elements of the same memory. */
  static boolean sameView(Tensor x, Tensor y) {
    if (x == y) {
      return true;
    }
    if (x.dtype() != y.dtype()
        || x.byteOffset() != y.byteOffset()
        || x.dims() != y.dims()
        || !x.memory().equals(y.memory())) {
      return false;
    }
    for (int d = 0; d < x.dims(); d++) {
      if (x.size(d) != y.size(d) || x.stride(d) != y.stride(d)) {
        return false;
      }
    }
    return true;
  }

  /** Three dimensions, in square blocks: what is read and what is written stay in caches. */
  private static void copyDense3(
      Tensor from, MemorySegment source, MemorySegment to, long toOffset, int width) {
    int block = 32;
    long rows = from.size(1);
    long cols = from.size(2);
    for (long e = 0; e < from.size(0); e++) {
      long base = from.byteOffset() + e * from.stride(0) * width;
      long dst = toOffset + e * rows * cols * width;
      for (long r0 = 0; r0 < rows; r0 += block) {
        for (long c0 = 0; c0 < cols; c0 += block) {
          for (long r = r0; r < Math.min(rows, r0 + block); r++) {
            for (long c = c0; c < Math.min(cols, c0 + block); c++) {
              long at = base + (r * from.stride(1) + c * from.stride(2)) * width;
              long o = dst + (r * cols + c) * width;
              if (width == Short.BYTES) {
                short bits = source.get(ValueLayout.JAVA_SHORT_UNALIGNED, at);
                to.set(ValueLayout.JAVA_SHORT_UNALIGNED, o, bits);
              } else {
                int bits = source.get(ValueLayout.JAVA_INT_UNALIGNED, at);
                to.set(ValueLayout.JAVA_INT_UNALIGNED, o, bits);
              }
            }
          }
        }
      }
    }
  }

  /**
   * Copies a host tensor of whole-byte elements, whatever its strides, to dense row-major bytes.
   */
  static void copyDense(Tensor from, MemorySegment to, long toOffset) {
    MemorySegment source = segment(from);
    int width = from.dtype().bits() / Byte.SIZE;
    if (from.isContiguous()) {
      MemorySegment.copy(source, from.byteOffset(), to, toOffset, from.elementCount() * width);
      return;
    }
    if (from.dims() == 3 && (width == Short.BYTES || width == Float.BYTES)) {
      copyDense3(from, source, to, toOffset, width);
      return;
    }
    long[] shape = from.shape();
    long[] index = new long[shape.length];
    long count = from.elementCount();
    for (long i = 0; i < count; i++) {
      long o = 0;
      for (int d = 0; d < shape.length; d++) {
        o += index[d] * from.stride(d);
      }
      MemorySegment.copy(source, from.byteOffset() + o * width, to, toOffset + i * width, width);
      for (int d = shape.length - 1; d >= 0 && ++index[d] == shape[d]; d--) {
        index[d] = 0;
      }
    }
  }
}
