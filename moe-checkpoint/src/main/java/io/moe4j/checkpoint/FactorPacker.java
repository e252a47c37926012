package io.moe4j.checkpoint;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Comparator;
import java.util.stream.Stream;

/** Copies factors out of a file into dense memory, scaled and widened where that is needed. */
final class FactorPacker {
  private static final long ALIGNMENT = 64;
  private static final ValueLayout.OfShort HALF =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfFloat FLOAT =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private FactorPacker() {}

  /** Memory for a dense tensor, all zero. */
  static Tensor allocate(Arena arena, DType dtype, long... shape) {
    long count = 1;
    for (long size : shape) {
      count = Math.multiplyExact(count, size);
    }
    return Tensor.of(dtype, arena.allocate(dtype.byteSize(count), ALIGNMENT), shape);
  }

  /**
   * Memory for a B, {@code [experts, out, rank]} in shape, {@code [experts, rank, out]} in memory,
   * all zero: the processor then multiplies it without summing across vectors.
   */
  static Tensor allocateB(Arena arena, DType dtype, long experts, long out, long rank) {
    return allocate(arena, dtype, experts, rank, out).transpose(1, 2);
  }

  /**
   * Whether every element times a factor is exact in the tensor's own dtype.
   *
   * @param t F32, BF16 or F16, 3-D, any strides
   * @param scale the factor
   */
  static boolean scalesExactly(Tensor t, double scale) {
    if (scale == 1 || t.dtype() == DType.F32) {
      return true;
    }
    if (!isPowerOfTwo(scale)) {
      return false;
    }
    MemorySegment from = segment(t);
    int[] p = slowestFirst(t);
    for (long x = 0; x < t.size(p[0]); x++) {
      for (long y = 0; y < t.size(p[1]); y++) {
        long at = x * t.stride(p[0]) + y * t.stride(p[1]);
        for (long z = 0; z < t.size(p[2]); z++) {
          double wanted = load(from, t, at + z * t.stride(p[2])) * scale;
          if (Double.isNaN(wanted)) {
            continue;
          }
          float narrow = (float) wanted;
          if (narrow != wanted || fromHalf(t.dtype(), toHalf(t.dtype(), narrow)) != narrow) {
            return false;
          }
        }
      }
    }
    return true;
  }

  /**
   * Whether every element is finite.
   *
   * @param t a contiguous F32, BF16 or F16 tensor
   */
  static boolean isFinite(Tensor t) {
    MemorySegment s = t.segment();
    long count = t.elementCount();
    int width = t.dtype() == DType.F32 ? Float.BYTES : Short.BYTES;
    for (long i = 0; i < count; i++) {
      float value =
          width == Float.BYTES
              ? s.get(FLOAT, Float.BYTES * i)
              : fromHalf(t.dtype(), s.get(HALF, Short.BYTES * i));
      if (!Float.isFinite(value)) {
        return false;
      }
    }
    return true;
  }

  /**
   * Whether every element is zero; ends at the first that is not.
   *
   * @param t F32, BF16 or F16, 3-D, any strides
   */
  static boolean isZero(Tensor t) {
    MemorySegment from = segment(t);
    for (long x = 0; x < t.size(0); x++) {
      for (long y = 0; y < t.size(1); y++) {
        for (long z = 0; z < t.size(2); z++) {
          long at = x * t.stride(0) + y * t.stride(1) + z * t.stride(2);
          if (load(from, t, at) != 0) {
            return false;
          }
        }
      }
    }
    return true;
  }

  private static boolean isPowerOfTwo(double scale) {
    return Double.isFinite(scale)
        && scale != 0
        && Math.abs(scale) == Math.scalb(1.0, Math.getExponent(scale));
  }

  /**
   * Copies {@code source * scale} into the corner of {@code target}.
   *
   * @param source {@code [x, y, z]}, F32, BF16 or F16, any strides
   * @param target of sizes at least as large; same dtype, or F32
   * @param scale factor
   * @return whether everything written is finite
   */
  static boolean copy(Tensor source, Tensor target, double scale) {
    boolean finite = true;
    boolean plain = scale == 1 && source.dtype() == target.dtype();
    MemorySegment from = segment(source);
    MemorySegment to = segment(target);
    // Along the file: its rank-major columns would otherwise cost a cache line an element.
    int[] p = slowestFirst(source);
    for (long x = 0; x < source.size(p[0]); x++) {
      for (long y = 0; y < source.size(p[1]); y++) {
        long at = x * source.stride(p[0]) + y * source.stride(p[1]);
        long put = x * target.stride(p[0]) + y * target.stride(p[1]);
        for (long z = 0; z < source.size(p[2]); z++) {
          long in = at + z * source.stride(p[2]);
          long out = put + z * target.stride(p[2]);
          float value = load(from, source, in);
          finite &= Float.isFinite(value);
          if (plain && source.dtype() != DType.F32) {
            to.set(
                HALF, target.byteOffset() + 2 * out, from.get(HALF, source.byteOffset() + 2 * in));
          } else {
            float scaled = (float) (value * scale);
            finite &= Float.isFinite(scaled);
            store(to, target, out, scaled);
          }
        }
      }
    }
    return finite;
  }

  /** The dimensions of a 3-D tensor, the one with the largest stride first. */
  private static int[] slowestFirst(Tensor t) {
    return Stream.of(0, 1, 2)
        .sorted(Comparator.comparingLong((Integer d) -> -t.stride(d)))
        .mapToInt(Integer::intValue)
        .toArray();
  }

  private static MemorySegment segment(Tensor t) {
    return ((HostMemory) t.memory()).segment();
  }

  private static float load(MemorySegment s, Tensor t, long index) {
    return t.dtype() == DType.F32
        ? s.get(FLOAT, t.byteOffset() + 4 * index)
        : fromHalf(t.dtype(), s.get(HALF, t.byteOffset() + 2 * index));
  }

  private static void store(MemorySegment s, Tensor t, long index, float value) {
    if (t.dtype() == DType.F32) {
      s.set(FLOAT, t.byteOffset() + 4 * index, value);
    } else {
      s.set(HALF, t.byteOffset() + 2 * index, toHalf(t.dtype(), value));
    }
  }

  private static float fromHalf(DType dtype, short bits) {
    return dtype == DType.BF16 ? Float.intBitsToFloat(bits << 16) : Float.float16ToFloat(bits);
  }

  /** Only for values that fit exactly; the caller has checked. */
  private static short toHalf(DType dtype, float value) {
    return dtype == DType.BF16
        ? (short) (Float.floatToRawIntBits(value) >>> 16)
        : Float.floatToFloat16(value);
  }
}
