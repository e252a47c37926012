package io.moe4j.backend.cpu;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * One slot's factors for one target, unpacked for the kernels; reused from call to call. A is best
 * with dense rows {@code [r, in]}; B with dense columns (the file's {@code [out, r]} seen from
 * {@code [r, out]} memory), then dense rows; anything else works element by element.
 */
final class LoraView {
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;

  private final Kernels kernels;
  private int rank;
  private int in;
  private MemorySegment a = NONE;
  private long aOffset;
  private long aExpert;
  private long aRow;
  private long aCol;
  private DType aType = DType.F32;
  private TypedKernels aKernels;
  private MemorySegment b = NONE;
  private long bOffset;
  private long bExpert;
  private long bRow;
  private long bCol;
  private DType bType = DType.F32;
  private TypedKernels bKernels;

  LoraView(Kernels kernels) {
    this.kernels = kernels;
    aKernels = kernels.forType(DType.F32);
    bKernels = aKernels;
  }

  /** Looks at other factors; null for none. */
  void set(@Nullable LoraFactors f) {
    if (f == null) {
      rank = 0;
      a = NONE;
      b = NONE;
      return;
    }
    rank = f.rank();
    in = f.inFeatures();
    Tensor ta = f.a();
    Tensor tb = f.b();
    aType = Rows.requireFloat("LoRA A", ta);
    bType = Rows.requireFloat("LoRA B", tb);
    a = Rows.segment(ta);
    b = Rows.segment(tb);
    aKernels = kernels.forType(aType);
    bKernels = kernels.forType(bType);
    long sa = aType.bits() / 8;
    long sb = bType.bits() / 8;
    aOffset = ta.byteOffset();
    aExpert = ta.size(0) == 1 ? 0 : ta.stride(0) * sa;
    aRow = ta.stride(1) * sa;
    aCol = ta.stride(2) * sa;
    bOffset = tb.byteOffset();
    bExpert = tb.size(0) == 1 ? 0 : tb.stride(0) * sb;
    bRow = tb.stride(1) * sb;
    bCol = tb.stride(2) * sb;
  }

  /** {@return 0 where there are no factors} */
  int rank() {
    return rank;
  }

  /** {@return whether both read the same A, so that one shrink serves both} */
  boolean sharesA(LoraView other) {
    return rank == other.rank
        && rank > 0
        && aType == other.aType
        && aOffset == other.aOffset
        && aExpert == other.aExpert
        && aRow == other.aRow
        && aCol == other.aCol
        && a.equals(other.a);
  }

  /** {@code out[j][0..rank) = A[expert] . x[j]} for up to four vectors. */
  void shrink(
      int expert,
      MemorySegment x,
      long x0,
      long x1,
      long x2,
      long x3,
      int tokens,
      MemorySegment out,
      long outOffset,
      long outStride) {
    long base = aOffset + expert * aExpert;
    if (aCol == aType.bits() / 8 || in == 1) {
      aKernels.dot(a, base, aRow, rank, x, x0, x1, x2, x3, tokens, in, out, outOffset, outStride);
      return;
    }
    for (int j = 0; j < tokens; j++) {
      long xj = j == 0 ? x0 : j == 1 ? x1 : j == 2 ? x2 : x3;
      for (int r = 0; r < rank; r++) {
        double sum = 0;
        for (int i = 0; i < in; i++) {
          sum += (double) read(aType, a, base + r * aRow + i * aCol) * x.get(F32, xj + 4L * i);
        }
        out.set(F32, outOffset + j * outStride + 4L * r, (float) sum);
      }
    }
  }

  /**
   * {@code dst[j][i] += (B[expert] . s[j])[row0 + i]} for tokens {@code j} and {@code n} rows.
   *
   * @param scratch F32, {@code 4 * n} floats
   */
  void expand(
      int expert,
      int row0,
      int n,
      MemorySegment s,
      long sOffset,
      long sStride,
      int tokens,
      MemorySegment dst,
      long dstOffset,
      long dstStride,
      MemorySegment scratch,
      long scratchOffset) {
    long base = bOffset + expert * bExpert + row0 * bRow;
    int size = bType.bits() / 8;
    if (bRow == size) {
      for (int j = 0; j < tokens; j++) {
        for (int r = 0; r < rank; r++) {
          bKernels.axpy(
              s.get(F32, sOffset + j * sStride + 4L * r),
              b,
              base + r * bCol,
              dst,
              dstOffset + j * dstStride,
              n);
        }
      }
    } else if (bCol == size || rank == 1) {
      TypedKernels f32 = kernels.forType(DType.F32);
      for (int j = 0; j < tokens; j += 4) {
        int m = Math.min(4, tokens - j);
        long s0 = sOffset + j * sStride;
        bKernels.dot(
            b,
            base,
            bRow,
            n,
            s,
            s0,
            s0 + sStride,
            s0 + 2 * sStride,
            s0 + 3 * sStride,
            m,
            rank,
            scratch,
            scratchOffset,
            4L * n);
        for (int t = 0; t < m; t++) {
          f32.axpy(
              1f, scratch, scratchOffset + 4L * n * t, dst, dstOffset + (j + t) * dstStride, n);
        }
      }
    } else {
      for (int j = 0; j < tokens; j++) {
        for (int i = 0; i < n; i++) {
          double sum = 0;
          for (int r = 0; r < rank; r++) {
            sum +=
                (double) read(bType, b, base + i * bRow + r * bCol)
                    * s.get(F32, sOffset + j * sStride + 4L * r);
          }
          long at = dstOffset + j * dstStride + 4L * i;
          dst.set(F32, at, dst.get(F32, at) + (float) sum);
        }
      }
    }
  }

  static float read(DType type, MemorySegment s, long at) {
    return switch (type) {
      case F32 -> s.get(F32, at);
      case BF16 -> Float.intBitsToFloat(s.get(ValueLayout.JAVA_SHORT_UNALIGNED, at) << 16);
      case F16 -> Float.float16ToFloat(s.get(ValueLayout.JAVA_SHORT_UNALIGNED, at));
      default -> throw new IllegalArgumentException("dtype " + type);
    };
  }
}
