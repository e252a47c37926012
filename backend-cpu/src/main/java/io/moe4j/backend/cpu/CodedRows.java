package io.moe4j.backend.cpu;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.kernel.Kernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * A quantised matrix that stays in its codes: a stretch of a row is widened to F32 when it is
 * needed, by the formula of {@link Weight}. Every scheme and packing; nothing is copied.
 */
final class CodedRows implements Matrix {
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;
  private static final ValueLayout.OfByte I8 = ValueLayout.JAVA_BYTE;

  private final Weight weight;
  private final QuantScheme scheme;
  private final int rows;
  private final int cols;
  private final Codes codes;

  /** By code: what it stands for before zero point and scale. */
  private final float[] values;

  private final Scales scales;
  private final @Nullable Codes zeros;
  private final @Nullable Tensor denseZeros;
  private final float zeroOffset;
  private final @Nullable Tensor groupIndex;

  CodedRows(Weight w) {
    weight = w;
    scheme = w.scheme();
    rows = Math.toIntExact(w.out());
    cols = Math.toIntExact(w.in());
    codes = new Codes(w.values(), w.packing(), scheme.bits());
    values = values(scheme.format(), w.packing());
    scales = new Scales(w);
    Tensor z = w.zeroPoints().orElse(null);
    boolean words = z != null && w.zeroPacking() != Packing.DENSE;
    zeros = z != null && words ? new Codes(z, w.zeroPacking(), scheme.bits()) : null;
    denseZeros = words ? null : z;
    zeroOffset = z == null && isUnsigned(w) ? 1 << (scheme.bits() - 1) : w.zeroOffset();
    groupIndex = w.groupIndex().orElse(null);
  }

  private static boolean isUnsigned(Weight w) {
    Format f = w.scheme().format();
    return (f == Format.INT4 || f == Format.INT8) && w.packing() != Packing.DENSE;
  }

  /** What a code stands for before zero point and scale; DENSE integers are signed. */
  private static float[] values(Format format, Packing packing) {
    int n = 1 << format.bits();
    float[] all = new float[n];
    for (int c = 0; c < n; c++) {
      all[c] =
          switch (format) {
            case FP4 -> Float4.VALUES[c];
            case FP8 -> Float8.value((byte) c);
            case INT8 -> packing == Packing.DENSE ? (byte) c : c;
            default -> c;
          };
    }
    return all;
  }

  /** {@return what this reads} */
  Weight weight() {
    return weight;
  }

  @Override
  public int rows() {
    return rows;
  }

  @Override
  public int cols() {
    return cols;
  }

  @Override
  public void widen(Kernels kernels, int row0, int count, int k0, int k, float[] to, int at) {
    for (int r = 0; r < count; r++) {
      int first = at + r * Kernels.PANEL_STRIDE;
      codes.read(row0 + r, k0, k, values, to, first);
      if (groupIndex == null) {
        scaleGroups(row0 + r, k0, k, to, first);
      } else {
        scaleEach(groupIndex, row0 + r, k0, k, to, first);
      }
    }
  }

  private void scaleGroups(int row, int k0, int k, float[] to, int at) {
    int size = scheme.scaleColumns() == QuantScheme.ALL ? cols : scheme.scaleColumns();
    for (int i = k0; i < k0 + k; ) {
      int group = i / size;
      int end = (int) Math.min(k0 + k, (group + 1L) * size);
      float zero = zero(row, group);
      float scale = scales.at(row, group);
      for (int j = at + i - k0; j < at + end - k0; j++) {
        to[j] = (to[j] - zero) * scale;
      }
      i = end;
    }
  }

  private void scaleEach(Tensor index, int row, int k0, int k, float[] to, int at) {
    MemorySegment s = Rows.segment(index);
    for (int i = 0; i < k; i++) {
      int group = s.get(I32, index.byteOffset() + 4L * (k0 + i) * index.stride(0));
      to[at + i] = (to[at + i] - zero(row, group)) * scales.at(row, group);
    }
  }

  /** {@return the zero point of a group, as a number} */
  private float zero(int row, int group) {
    if (zeros != null) {
      return zeros.at(row, group) + zeroOffset;
    }
    return denseZeros == null ? zeroOffset : (float) denseZeros.get(row, group) + zeroOffset;
  }

  /** Codes, or zero points, in a tensor of one packing. */
  private static final class Codes {
    private final MemorySegment segment;
    private final long offset;
    private final long rowStride;
    private final long colStride;
    private final Packing packing;
    private final int bits;
    private final int perWord;

    Codes(Tensor t, Packing packing, int bits) {
      segment = Rows.segment(t);
      offset = t.byteOffset();
      rowStride = t.stride(0);
      colStride = t.stride(1);
      this.packing = packing;
      this.bits = bits;
      perWord = Integer.SIZE / bits;
    }

    /** {@return the bits of a field of a word} */
    int at(int row, int col) {
      boolean alongIn = packing == Packing.WORDS_ALONG_IN;
      long r = alongIn ? row : row / perWord;
      long c = alongIn ? col / perWord : col;
      return field(segment.get(I32, word(r, c)), packing.shift(row, col, bits));
    }

    private long word(long r, long c) {
      return offset + 4 * (r * rowStride + c * colStride);
    }

    private int field(int word, int shift) {
      return (word >>> shift) & ((1 << bits) - 1);
    }

    /** Values of {@code k} codes of a row. */
    void read(int row, int k0, int k, float[] values, float[] to, int at) {
      switch (packing) {
        case DENSE -> readDense(row, k0, k, values, to, at);
        case WORDS_ALONG_IN -> readAlong(row, k0, k, values, to, at);
        default -> {
          int shift = packing.shift(row, 0, bits);
          long r = row / perWord;
          for (int i = 0; i < k; i++) {
            to[at + i] = values[field(segment.get(I32, word(r, k0 + i)), shift)];
          }
        }
      }
    }

    private void readAlong(int row, int k0, int k, float[] values, float[] to, int at) {
      for (int i = k0; i < k0 + k; ) {
        int word = segment.get(I32, word(row, i / perWord));
        int end = Math.min(k0 + k, (i / perWord + 1) * perWord);
        for (word >>>= i % perWord * bits; i < end; i++, word >>>= bits) {
          to[at + i - k0] = values[word & ((1 << bits) - 1)];
        }
      }
    }

    private void readDense(int row, int k0, int k, float[] values, float[] to, int at) {
      long first = row * rowStride + k0 * colStride;
      if (bits == 8) {
        for (int i = 0; i < k; i++) {
          to[at + i] = values[segment.get(I8, offset + first + i * colStride) & 255];
        }
        return;
      }
      for (int i = 0; i < k; i++) {
        long element = first + i * colStride;
        int two = segment.get(I8, offset + (element >> 1));
        to[at + i] = values[(two >> ((element & 1) * 4)) & 15];
      }
    }
  }

  /** Scales in their own dtype, times the global one. */
  private static final class Scales {
    private final Tensor tensor;
    private final MemorySegment segment;
    private final int scaleRows;
    private final float global;

    Scales(Weight w) {
      tensor = w.scales().orElseThrow();
      segment = Rows.segment(tensor);
      scaleRows = w.scheme().scaleRows() == QuantScheme.ALL ? 0 : w.scheme().scaleRows();
      double g = w.globalScale().map(t -> t.toDoubles()[0]).orElse(1.0);
      global = (float) (w.dividedByGlobal() ? 1 / g : g);
    }

    float at(int row, int group) {
      long r = scaleRows == 0 ? 0 : row / scaleRows;
      long element = r * tensor.stride(0) + group * tensor.stride(1);
      long at = tensor.byteOffset() + element * (tensor.dtype().bits() / 8);
      return global
          * switch (tensor.dtype()) {
            case F32 -> segment.get(ValueLayout.JAVA_FLOAT_UNALIGNED, at);
            case BF16 ->
                Float.intBitsToFloat(segment.get(ValueLayout.JAVA_SHORT_UNALIGNED, at) << 16);
            case F16 -> Float.float16ToFloat(segment.get(ValueLayout.JAVA_SHORT_UNALIGNED, at));
            case F8_E8M0 -> Float8.power(segment.get(I8, at));
            case F8_E4M3 -> Float8.value(segment.get(I8, at));
            default -> throw new IllegalArgumentException("scales are " + tensor);
          };
    }
  }
}
