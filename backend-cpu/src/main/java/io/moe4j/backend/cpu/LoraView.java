package io.moe4j.backend.cpu;

import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.kernel.ExpandKernel;
import io.moe4j.backend.cpu.kernel.Kernels;
import io.moe4j.backend.cpu.kernel.TypedKernels;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.jspecify.annotations.Nullable;

/**
 * One slot's factors for one target, unpacked for the kernels; reused from call to call. A is best
 * with dense rows {@code [r, in]}; B as {@code [r, out]}, as adapters are loaded, since nothing
 * needs to be summed across a vector then. B with dense rows {@code [out, r]} takes about three
 * times as long, other strides longer.
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
  private ExpandKernel bKernel;

  LoraView(Kernels kernels) {
    this.kernels = kernels;
    aKernels = kernels.forType(DType.F32);
    bKernel = kernels.expandOf(DType.F32, MemorySegment.NULL);
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
    Tensor ta = FileMemory.copied(f.a());
    Tensor tb = FileMemory.copied(f.b());
    aType = Rows.requireFloat("LoRA A", ta);
    DType bType = Rows.requireFloat("LoRA B", tb);
    a = Rows.segment(ta);
    b = Rows.segment(tb);
    aKernels = kernels.forType(aType, a);
    bKernel = kernels.expandOf(bType, b);
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

  /** {@return outputs of B} */
  int outputs() {
    return out;
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
   * {@code dst[j] (+)= B[expert][row0..row0+rows) . s[j]} for some tokens {@code j}.
   *
   * @param row0 first output
   * @param rows how many
   * @param s shrunk tokens, F32; a vector behind the last may be read
   * @param sStride bytes from one to the next
   * @param at where each result begins
   * @param add to what is there
   */
  void expand(
      int expert,
      int row0,
      int rows,
      MemorySegment s,
      long sOffset,
      long sStride,
      int tokens,
      MemorySegment dst,
      long[] at,
      boolean add) {
    long base = bOffset + expert * bExpert + row0 * bRow;
    bKernel.expand(b, base, bRow, bCol, rows, rank, s, sOffset, sStride, dst, at, tokens, add);
  }

  private static float read(DType type, MemorySegment s, long at) {
    return switch (type) {
      case F32 -> s.get(F32, at);
      case BF16 -> Float.intBitsToFloat(s.get(ValueLayout.JAVA_SHORT_UNALIGNED, at) << 16);
      case F16 -> Float.float16ToFloat(s.get(ValueLayout.JAVA_SHORT_UNALIGNED, at));
      default -> throw new IllegalArgumentException("dtype " + type);
    };
  }
}
