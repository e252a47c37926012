package io.moe4j.lora;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Comparator;
import org.jspecify.annotations.Nullable;

/**
 * Finds a factor's elements that kernels could not compute with. One infinity among the factors
 * reaches further than its own adapter: kernels multiply whole tiles of rows and factors, with
 * zeros where an adapter is not a row's own, and zero times infinity is NaN.
 *
 * <p>Magnitudes of IEEE numbers, NaN included, are ordered like their bits without the sign; so a
 * factor is read once, as integers.
 */
final class FactorValues {
  private static final ValueLayout.OfShort I16 =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final int CHUNK = 4096;

  private FactorValues() {}

  /**
   * Looks for an element that is not finite once it is rounded to another dtype.
   *
   * @param t F32, BF16 or F16 {@code [E, x, y]} in host memory, any strides
   * @param to what backends may round it to; its own dtype where they do not
   * @return the indices of one, null if there is none
   */
  static long @Nullable [] outOfRange(Tensor t, DType to) {
    int least = firstInfinite(t.dtype(), to);
    int[] order = slowestFirst(t);
    long[] sizes = new long[3];
    for (int d = 0; d < sizes.length; d++) {
      // Elements that many indices share are looked at once.
      sizes[d] = t.stride(order[d]) == 0 ? Math.min(1, t.size(order[d])) : t.size(order[d]);
    }
    Reader reader = new Reader(t, t.stride(order[2]));
    for (long x = 0; x < sizes[0]; x++) {
      for (long y = 0; y < sizes[1]; y++) {
        long at = x * t.stride(order[0]) + y * t.stride(order[1]);
        for (long z = 0; z < sizes[2]; z += CHUNK) {
          int n = (int) Math.min(CHUNK, sizes[2] - z);
          if (reader.largest(at + z * t.stride(order[2]), n) >= least) {
            long[] found = new long[3];
            found[order[0]] = x;
            found[order[1]] = y;
            found[order[2]] = z + reader.first(least, n);
            return found;
          }
        }
      }
    }
    return null;
  }

  /** The least magnitude that is infinite in the other dtype, as bits of its own. */
  private static int firstInfinite(DType own, DType to) {
    if (own == DType.F16) {
      return 0x7c00;
    }
    // Halfway between the largest number and the next power of two: ties to even go up.
    float least =
        switch (to) {
          case F16 -> 65520;
          case BF16 -> 0x1.ffp127f;
          default -> Float.POSITIVE_INFINITY;
        };
    int bits = Float.floatToRawIntBits(least);
    return own == DType.F32 ? bits : (bits + 0xffff) >>> 16;
  }

  /** {@return the largest finite number of a dtype} */
  static double largest(DType dtype) {
    return switch (dtype) {
      case F16 -> 65504;
      case BF16 -> 0x1.fep127;
      default -> Float.MAX_VALUE;
    };
  }

  private static int[] slowestFirst(Tensor t) {
    Integer[] order = {0, 1, 2};
    // Dimensions of one element come first: the innermost is to be long.
    Arrays.sort(
        order,
        Comparator.comparingLong(
            d -> t.stride(d) == 0 || t.size(d) == 1 ? Long.MIN_VALUE : -t.stride(d)));
    return Arrays.stream(order).mapToInt(Integer::intValue).toArray();
  }

  /** Magnitudes of a stretch at a time. */
  private static final class Reader {
    private final MemorySegment from;
    private final long offset;
    private final boolean wide;
    private final long step;
    private final short[] halves = new short[CHUNK];
    private final int[] bits = new int[CHUNK];

    Reader(Tensor t, long step) {
      this.from = Tensors.segment(t);
      this.offset = t.byteOffset();
      this.wide = t.dtype() == DType.F32;
      this.step = step;
    }

    /** Reads elements, and gives the largest magnitude. */
    int largest(long element, int n) {
      int most = 0;
      if (wide) {
        long at = offset + Integer.BYTES * element;
        if (step == 1) {
          MemorySegment.copy(from, I32, at, bits, 0, n);
        } else {
          for (int i = 0; i < n; i++) {
            bits[i] = from.get(I32, at + Integer.BYTES * step * i);
          }
        }
        for (int i = 0; i < n; i++) {
          most = Math.max(most, bits[i] & 0x7fffffff);
        }
        return most;
      }
      long at = offset + Short.BYTES * element;
      if (step == 1) {
        MemorySegment.copy(from, I16, at, halves, 0, n);
      } else {
        for (int i = 0; i < n; i++) {
          halves[i] = from.get(I16, at + Short.BYTES * step * i);
        }
      }
      for (int i = 0; i < n; i++) {
        most = Math.max(most, halves[i] & 0x7fff);
      }
      return most;
    }

    /** The first of the elements read last whose magnitude is that or more. */
    int first(int least, int n) {
      for (int i = 0; i < n; i++) {
        if ((wide ? bits[i] & 0x7fffffff : halves[i] & 0x7fff) >= least) {
          return i;
        }
      }
      throw new IllegalStateException("no element is that large");
    }
  }
}
