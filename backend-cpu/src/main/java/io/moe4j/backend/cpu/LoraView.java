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
 * with dense rows {@code [r, in]}; B with dense rows {@code [out, r]}, as an adapter registry keeps
 * them: then what a tile needs of it is one stretch of memory. Anything else works too, but slower.
 */
final class LoraView {
  private static final MemorySegment NONE = MemorySegment.ofArray(new byte[0]);
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;

  private final Kernels kernels;
  private int rank;
  private int in;
  private int out;
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
    out = f.outFeatures();
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

  /**
   * {@code out[j][0..rank) = A[expert] . x[j]} for some vectors.
   *
   * @param at where each vector begins
   * @param tokens as {@link TypedKernels#dot} takes
   * @param scratch the caller's
   */
  void shrink(
      int expert,
      MemorySegment x,
      long[] at,
      int tokens,
      MemorySegment out,
      long outOffset,
      long outStride,
      float[] scratch) {
    long base = aOffset + expert * aExpert;
    if (aCol == aType.bits() / 8 || in == 1) {
      aKernels.dot(a, base, aRow, rank, x, at, tokens, in, out, outOffset, outStride, scratch);
      return;
    }
    for (int j = 0; j < tokens; j++) {
      for (int r = 0; r < rank; r++) {
        double sum = 0;
        for (int i = 0; i < in; i++) {
          sum += (double) read(aType, a, base + r * aRow + i * aCol) * x.get(F32, at[j] + 4L * i);
        }
        out.set(F32, outOffset + j * outStride + 4L * r, (float) sum);
      }
    }
  }

  /**
   * {@code dst[j][i] += (B[expert] . s[j])[row0 + i]} for tokens {@code j}.
   *
   * @param n rows, at most {@link PanelLora#STRIDE}
   * @param scratch of the calling member
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
      MemberScratch scratch) {
    float[] piece = scratch.loraB;
    int stride = PanelLora.STRIDE;
    for (int r0 = 0; r0 < rank; r0 += PanelLora.RANKS) {
      int ranks = Math.min(PanelLora.RANKS, rank - r0);
      widenB(expert, r0, ranks, row0, n, scratch);
      for (int j = 0; j < tokens; j++) {
        long from = sOffset + j * sStride + 4L * r0;
        kernels.expandRow(piece, stride, s, from, ranks, dst, dstOffset + j * dstStride, n);
      }
    }
  }

  /**
   * A piece of B, transposed and widened: {@code dst[r * stride + i] = B[expert][row0 + i][r0 + r]}
   * into {@code loraB}; may write up to {@link PanelLora#STRIDE} elements for each rank.
   *
   * @param n rows, at most {@link PanelLora#STRIDE}
   * @param ranks at most {@link PanelLora#RANKS}
   */
  void widenB(int expert, int r0, int ranks, int row0, int n, MemberScratch scratch) {
    long base = bOffset + expert * bExpert + row0 * bRow + r0 * bCol;
    int size = bType.bits() / 8;
    int stride = PanelLora.STRIDE;
    float[] dst = scratch.loraB;
    if (bCol == size || rank == 1) {
      float[] rows = scratch.loraRows;
      if (bRow == (long) ranks * size) {
        bKernels.widen(b, base, rows, 0, n * ranks);
      } else {
        for (int i = 0; i < n; i++) {
          bKernels.widen(b, base + i * bRow, rows, i * ranks, ranks);
        }
      }
      turn(rows, n, ranks, dst, stride);
    } else if (bRow == size) {
      // Whole vectors where the matrix goes on that far.
      int whole = Math.min(stride, Math.min(out - row0, Math.ceilDiv(n, 16) * 16));
      for (int r = 0; r < ranks; r++) {
        bKernels.widen(b, base + r * bCol, dst, r * stride, whole);
      }
    } else {
      for (int i = 0; i < n; i++) {
        for (int r = 0; r < ranks; r++) {
          dst[r * stride + i] = read(bType, b, base + i * bRow + r * bCol);
        }
      }
    }
  }

  /** {@code dst[r][i] = rows[i][r]}, by whole blocks where they fit. */
  private void turn(float[] rows, int n, int ranks, float[] dst, int stride) {
    int lanes = kernels.lanes();
    if (ranks % lanes == 0 && lanes > 1) {
      for (int i = 0; i < n; i += lanes) {
        for (int r = 0; r < ranks; r += lanes) {
          kernels.transpose(rows, i * ranks + r, ranks, dst, r * stride + i, stride);
        }
      }
      return;
    }
    for (int i = 0; i < n; i++) {
      for (int r = 0; r < ranks; r++) {
        dst[r * stride + i] = rows[i * ranks + r];
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
