package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;
import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/** Plain Java: right everywhere, used where the Vector API is absent. */
final class ScalarKernels implements Kernels {
  static final ValueLayout.OfFloat F32 =
      ValueLayout.JAVA_FLOAT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  static final ValueLayout.OfShort I16 =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  @Override
  public String description() {
    return "scalar";
  }

  @Override
  public int lanes() {
    return 1;
  }

  @Override
  public TypedKernels forType(DType dtype, MemorySegment kind) {
    return new Typed(requireFloat(dtype));
  }

  static DType requireFloat(DType dtype) {
    if (dtype != DType.F32 && dtype != DType.BF16 && dtype != DType.F16) {
      throw new IllegalArgumentException("dtype is " + dtype + ", must be F32, BF16 or F16");
    }
    return dtype;
  }

  /** Element {@code i} of a row as F32, exactly. */
  static float read(DType dtype, MemorySegment s, long offset, long i) {
    return switch (dtype) {
      case F32 -> s.get(F32, offset + 4 * i);
      case BF16 -> Float.intBitsToFloat(s.get(I16, offset + 2 * i) << 16);
      case F16 -> Float.float16ToFloat(s.get(I16, offset + 2 * i));
      default -> throw new IllegalArgumentException("dtype " + dtype);
    };
  }

  /** Rows {@code from..to-1} of {@link ExpandKernel#expand}, of one token. */
  static void expand(
      DType dtype,
      MemorySegment b,
      long bOffset,
      long rowStep,
      long rankStep,
      int from,
      int to,
      int rank,
      MemorySegment s,
      long sOffset,
      MemorySegment dst,
      long dstOffset,
      boolean add) {
    for (int i = from; i < to; i++) {
      float sum = 0;
      for (int r = 0; r < rank; r++) {
        float v = read(dtype, b, bOffset + i * rowStep + r * rankStep, 0);
        sum = Math.fma(v, s.get(F32, sOffset + 4L * r), sum);
      }
      long at = dstOffset + 4L * i;
      dst.set(F32, at, add ? dst.get(F32, at) + sum : sum);
    }
  }

  @Override
  public ExpandKernel expandOf(DType dtype, MemorySegment kind) {
    return new Expand(requireFloat(dtype));
  }

  @Override
  public void panel(
      float[] w, int w0, MemorySegment x, long xOffset, int vectors, int k, float[] c, int c0) {
    for (int r = 0; r < PANEL_ROWS; r++) {
      for (int t = 0; t < vectors; t++) {
        int at = c0 + r * vectors + t;
        float sum = c[at];
        for (int i = 0; i < k; i++) {
          sum += w[w0 + r * PANEL_STRIDE + i] * x.get(F32, xOffset + 4L * ((long) i * vectors + t));
        }
        c[at] = sum;
      }
    }
  }

  @Override
  public void rows(
      float[] w,
      int w0,
      int rows,
      float[] x,
      int tokens,
      int k,
      MemorySegment out,
      long outOffset,
      long outStride,
      boolean add) {
    for (int r = 0; r < rows; r++) {
      for (int j = 0; j < tokens; j++) {
        float sum = 0;
        for (int i = 0; i < k; i++) {
          sum += w[w0 + r * PANEL_STRIDE + i] * x[j * PANEL_STRIDE + i];
        }
        long o = outOffset + j * outStride + 4L * r;
        out.set(F32, o, add ? out.get(F32, o) + sum : sum);
      }
    }
  }

  @Override
  public void transpose(
      float[] src,
      int at,
      int stride,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      int rows,
      int columns) {
    if (rows > 0 && columns > 0) {
      dst.set(F32, dstOffset, src[at]);
    }
  }

  @Override
  public void transpose(
      MemorySegment src,
      long srcOffset,
      long srcStride,
      float[] turned,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      int first,
      int jump,
      int rows) {
    if (rows > 0) {
      long o = dstOffset + (first / 6 * jump + first % 6) * dstStride;
      dst.set(F32, o, src.get(F32, srcOffset));
    }
  }

  @Override
  public void activate(
      Activation activation,
      MemorySegment gate,
      long gateOffset,
      MemorySegment up,
      long upOffset,
      MemorySegment dst,
      long dstOffset,
      int n) {
    boolean gated = activation.isGated();
    for (int i = 0; i < n; i++) {
      float g = gated ? gate.get(F32, gateOffset + 4L * i) : 0f;
      float u = up.get(F32, upOffset + 4L * i);
      dst.set(F32, dstOffset + 4L * i, (float) ScalarActivation.apply(activation, g, u));
    }
  }

  private record Expand(DType dtype) implements ExpandKernel {
    @Override
    public void expand(
        MemorySegment b,
        long bOffset,
        long rowStep,
        long rankStep,
        int rows,
        int rank,
        MemorySegment s,
        long sOffset,
        long sStep,
        MemorySegment dst,
        long[] at,
        int tokens,
        boolean add) {
      for (int j = 0; j < tokens; j++) {
        long q = sOffset + j * sStep;
        ScalarKernels.expand(
            dtype, b, bOffset, rowStep, rankStep, 0, rows, rank, s, q, dst, at[j], add);
      }
    }
  }

  private record Typed(DType dtype) implements TypedKernels {
    @Override
    public void dot(
        MemorySegment w,
        long wOffset,
        long wStride,
        int rows,
        MemorySegment x,
        long[] at,
        int tokens,
        int k,
        MemorySegment out,
        long outOffset,
        long outStride,
        float[] scratch) {
      for (int r = 0; r < rows; r++) {
        for (int j = 0; j < tokens; j++) {
          out.set(
              F32,
              outOffset + j * outStride + 4L * r,
              dotRow(dtype, w, wOffset + r * wStride, x, at[j], k));
        }
      }
    }

    @Override
    public void widen(
        MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n, float scale) {
      for (int i = 0; i < n; i++) {
        dst.set(F32, dstOffset + 4L * i, scale * read(dtype, src, srcOffset, i));
      }
    }

    @Override
    public void widen(MemorySegment src, long srcOffset, float[] dst, int at, int n) {
      for (int i = 0; i < n; i++) {
        dst[at + i] = read(dtype, src, srcOffset, i);
      }
    }

    @Override
    public void axpy(
        float factor, MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n) {
      for (int i = 0; i < n; i++) {
        long at = dstOffset + 4L * i;
        dst.set(F32, at, Math.fma(factor, read(dtype, src, srcOffset, i), dst.get(F32, at)));
      }
    }

    /** Four partial sums, so that rounding errors stay as small as with vectors. */
    private static float dotRow(
        DType dtype, MemorySegment w, long wOffset, MemorySegment x, long xOffset, int k) {
      float a = 0;
      float b = 0;
      float c = 0;
      float d = 0;
      int i = 0;
      for (; i + 4 <= k; i += 4) {
        a += read(dtype, w, wOffset, i) * x.get(F32, xOffset + 4L * i);
        b += read(dtype, w, wOffset, i + 1) * x.get(F32, xOffset + 4L * i + 4);
        c += read(dtype, w, wOffset, i + 2) * x.get(F32, xOffset + 4L * i + 8);
        d += read(dtype, w, wOffset, i + 3) * x.get(F32, xOffset + 4L * i + 12);
      }
      for (; i < k; i++) {
        a += read(dtype, w, wOffset, i) * x.get(F32, xOffset + 4L * i);
      }
      return (a + b) + (c + d);
    }
  }
}
