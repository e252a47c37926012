package io.moe4j.comm.tcp;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Arrays;

/** Sums in f32 in the order of ranks, rounded once to the dtype. */
final class HostSums {
  private static final int BLOCK = 4096;
  private static final ValueLayout.OfFloat F32 =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort B16 =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final float[] total = new float[BLOCK];

  static boolean takes(DType dtype) {
    return dtype == DType.F32 || dtype == DType.BF16 || dtype == DType.F16;
  }

  /**
   * Sums.
   *
   * @param dtype of all
   * @param parts one a rank, of one length
   * @param into of that length, overwritten; may be one of the parts
   */
  void sum(DType dtype, MemorySegment[] parts, MemorySegment into) {
    long n = into.byteSize() / dtype.byteSize(1);
    for (long at = 0; at < n; at += BLOCK) {
      int count = (int) Math.min(BLOCK, n - at);
      Arrays.fill(total, 0, count, 0f);
      for (MemorySegment part : parts) {
        add(dtype, part, at, count);
      }
      put(dtype, into, at, count);
    }
  }

  private void add(DType dtype, MemorySegment part, long at, int count) {
    switch (dtype) {
      case F32 -> {
        for (int i = 0; i < count; i++) {
          total[i] += part.get(F32, (at + i) * Float.BYTES);
        }
      }
      case BF16 -> {
        for (int i = 0; i < count; i++) {
          total[i] += Float.intBitsToFloat(part.get(B16, (at + i) * Short.BYTES) << 16);
        }
      }
      default -> {
        for (int i = 0; i < count; i++) {
          total[i] += Float.float16ToFloat(part.get(B16, (at + i) * Short.BYTES));
        }
      }
    }
  }

  private void put(DType dtype, MemorySegment into, long at, int count) {
    switch (dtype) {
      case F32 -> {
        for (int i = 0; i < count; i++) {
          into.set(F32, (at + i) * Float.BYTES, total[i]);
        }
      }
      case BF16 -> {
        for (int i = 0; i < count; i++) {
          into.set(B16, (at + i) * Short.BYTES, Tensor.toBFloat16(total[i]));
        }
      }
      default -> {
        for (int i = 0; i < count; i++) {
          into.set(B16, (at + i) * Short.BYTES, Float.floatToFloat16(total[i]));
        }
      }
    }
  }
}
