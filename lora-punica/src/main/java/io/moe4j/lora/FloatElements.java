package io.moe4j.lora;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/**
 * Between F32, BF16 or F16 in memory and float arrays. Dense stretches go through bulk copies and
 * array loops that the JIT turns into vector code.
 */
final class FloatElements {
  static final ValueLayout.OfFloat F32 =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort I16 =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private FloatElements() {}

  /**
   * Reads a stretch.
   *
   * @param offset of the first element, bytes
   * @param step between elements, bytes
   * @param bits scratch of at least n for 16-bit types
   */
  static void read(
      MemorySegment from,
      DType dtype,
      long offset,
      long step,
      int n,
      float[] to,
      int at,
      short[] bits) {
    if (dtype == DType.F32) {
      if (step == Float.BYTES) {
        MemorySegment.copy(from, F32, offset, to, at, n);
      } else {
        for (int i = 0; i < n; i++) {
          to[at + i] = from.get(F32, offset + i * step);
        }
      }
      return;
    }
    if (step == Short.BYTES) {
      MemorySegment.copy(from, I16, offset, bits, 0, n);
    } else {
      for (int i = 0; i < n; i++) {
        bits[i] = from.get(I16, offset + i * step);
      }
    }
    if (dtype == DType.BF16) {
      for (int i = 0; i < n; i++) {
        to[at + i] = Float.intBitsToFloat(bits[i] << 16);
      }
    } else {
      for (int i = 0; i < n; i++) {
        to[at + i] = Float.float16ToFloat(bits[i]);
      }
    }
  }

  /**
   * Writes a stretch, rounded to nearest even.
   *
   * @param add whether to add to what is there, in f32, before rounding
   * @param old scratch of at least n
   * @param bits scratch of at least n
   */
  static void write(
      MemorySegment to,
      DType dtype,
      long offset,
      long step,
      int n,
      float[] values,
      boolean add,
      float[] old,
      short[] bits) {
    float[] out = values;
    if (add) {
      read(to, dtype, offset, step, n, old, 0, bits);
      for (int i = 0; i < n; i++) {
        old[i] += values[i];
      }
      out = old;
    }
    if (dtype == DType.F32) {
      if (step == Float.BYTES) {
        MemorySegment.copy(out, 0, to, F32, offset, n);
      } else {
        for (int i = 0; i < n; i++) {
          to.set(F32, offset + i * step, out[i]);
        }
      }
      return;
    }
    if (dtype == DType.BF16) {
      for (int i = 0; i < n; i++) {
        bits[i] = Tensor.toBFloat16(out[i]);
      }
    } else {
      for (int i = 0; i < n; i++) {
        bits[i] = Float.floatToFloat16(out[i]);
      }
    }
    if (step == Short.BYTES) {
      MemorySegment.copy(bits, 0, to, I16, offset, n);
    } else {
      for (int i = 0; i < n; i++) {
        to.set(I16, offset + i * step, bits[i]);
      }
    }
  }
}
