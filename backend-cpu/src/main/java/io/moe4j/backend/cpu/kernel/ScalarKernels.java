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
  public TypedKernels forType(DType dtype) {
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

  @Override
  public long panel(
      float[] w,
      int w0,
      MemorySegment x,
      long xOffset,
      int vectors,
      int k,
      MemorySegment c,
      long cOffset,
      MemorySegment next,
      long nextOffset,
      long step) {
    for (int r = 0; r < PANEL_ROWS; r++) {
      for (int t = 0; t < vectors; t++) {
        long at = cOffset + 4L * (r * vectors + t);
        float sum = c.get(F32, at);
        for (int i = 0; i < k; i++) {
          sum += w[w0 + r * PANEL_STRIDE + i] * x.get(F32, xOffset + 4L * ((long) i * vectors + t));
        }
        c.set(F32, at, sum);
      }
    }
    return 0;
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

  private record Typed(DType dtype) implements TypedKernels {
    @Override
    public void dot(
        MemorySegment w,
        long wOffset,
        long wStride,
        int rows,
        MemorySegment x,
        long x0,
        long x1,
        long x2,
        long x3,
        int tokens,
        int k,
        MemorySegment out,
        long outOffset,
        long outStride) {
      for (int r = 0; r < rows; r++) {
        for (int j = 0; j < tokens; j++) {
          long xj = j == 0 ? x0 : j == 1 ? x1 : j == 2 ? x2 : x3;
          out.set(
              F32,
              outOffset + j * outStride + 4L * r,
              dotRow(dtype, w, wOffset + r * wStride, x, xj, k));
        }
      }
    }

    @Override
    public void dotMany(
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
        long outStride) {
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
