package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.tensor.DType;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandles;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * Vector kernels over matrices of one dtype. A {@link VectorTemplate}.
 *
 * <p>{@code dot} works on blocks of four rows, four sequential streams of weights that keep the
 * memory busy, and up to six vectors: 24 accumulators, ten loads for 24 multiply-adds. The vectors
 * are copied to an array where they stand a constant distance apart: with an address for each of
 * them the compiler runs out of registers and moves addresses through vector registers, on the very
 * ports that multiply. Sums leave through an array too, and are folded by a method of their own: a
 * vector that is handed to a method that is not inlined becomes an object. Elements that do not
 * fill a vector are added one by one.
 */
final class VectorTyped implements TypedKernels {
  private static final VectorTemplate DATA = VectorTemplate.data(MethodHandles.lookup());
  private static final DType TYPE = DATA.dtype();

  /** Of weights. */
  private static final Class<?> MEMORY = DATA.memory();

  /** For other memory. */
  private static final TypedKernels SCALAR = KernelSelection.scalar().forType(TYPE);

  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final int BYTES = TYPE.bits() / 8;

  /** Elements of the vectors in the scratch at a time, and from one to the next. */
  private static final int STRETCH = 2048;

  private static final int XS = STRETCH + 16;

  /** Where the accumulators go in the scratch. */
  private static final int SUMS = TypedKernels.MAX_TOKENS * XS;

  private VectorTyped() {}

  /** A vector of consecutive elements, widened exactly. */
  private static FloatVector load(MemorySegment s, long offset) {
    if (TYPE == DType.F32) {
      return VectorLoads.f32(s, offset);
    }
    return TYPE == DType.BF16 ? VectorLoads.bf16(s, offset) : VectorLoads.f16(s, offset);
  }

  private static float readOne(MemorySegment s, long offset, long i) {
    return ScalarKernels.read(TYPE, s, offset, i);
  }

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
    if (w.getClass() != MEMORY) {
      SCALAR.dot(w, wOffset, wStride, rows, x, at, tokens, k, out, outOffset, outStride, scratch);
      return;
    }
    for (int k0 = 0; k0 == 0 || k0 < k; k0 += STRETCH) {
      int n = Math.min(STRETCH, k - k0);
      for (int j = 0; j < tokens; j++) {
        MemorySegment.copy(x, ScalarKernels.F32, at[j] + 4L * k0, scratch, j * XS, n);
      }
      long w0 = wOffset + (long) BYTES * k0;
      int bound = F.loopBound(n);
      int r = 0;
      for (; r + 4 <= rows; r += 4) {
        long row = w0 + r * wStride;
        switch (tokens) {
          case 1 -> dot4x1(w, row, wStride, scratch, bound);
          case 2 -> dot4x2(w, row, wStride, scratch, bound);
          case 3 -> dot4x3(w, row, wStride, scratch, bound);
          case 4 -> dot4x4(w, row, wStride, scratch, bound);
          case 5 -> dot4x5(w, row, wStride, scratch, bound);
          default -> dot4x6(w, row, wStride, scratch, bound);
        }
        Lanes.fold(scratch, SUMS, 4, tokens, out, outOffset + 4L * r, outStride, k0 > 0);
      }
      for (; r < rows; r++) {
        for (int j = 0; j < tokens; j++) {
          dot1x1(w, w0 + r * wStride, scratch, j * XS, bound);
          long o = outOffset + 4L * r + j * outStride;
          Lanes.fold(scratch, SUMS, 1, 1, out, o, outStride, k0 > 0);
        }
      }
      if (bound < n) {
        rest(w, w0, wStride, rows, scratch, tokens, bound, n, out, outOffset, outStride);
      }
    }
  }

  /** The elements behind the last whole vector. */
  private static void rest(
      MemorySegment w,
      long w0,
      long wStride,
      int rows,
      float[] x,
      int tokens,
      int from,
      int to,
      MemorySegment out,
      long outOffset,
      long outStride) {
    for (int r = 0; r < rows; r++) {
      for (int j = 0; j < tokens; j++) {
        float sum = 0;
        for (int i = from; i < to; i++) {
          sum += readOne(w, w0 + r * wStride, i) * x[j * XS + i];
        }
        long o = outOffset + 4L * r + j * outStride;
        out.set(ScalarKernels.F32, o, out.get(ScalarKernels.F32, o) + sum);
      }
    }
  }

  private static void dot4x1(MemorySegment w, long w0, long wStride, float[] x, int bound) {
    w = SegmentClass.known(w, MEMORY);
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
    }
    s00.intoArray(x, SUMS);
    s10.intoArray(x, SUMS + VL);
    s20.intoArray(x, SUMS + 2 * VL);
    s30.intoArray(x, SUMS + 3 * VL);
  }

  private static void dot4x2(MemorySegment w, long w0, long wStride, float[] x, int bound) {
    w = SegmentClass.known(w, MEMORY);
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromArray(F, x, k + XS);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
    }
    s00.intoArray(x, SUMS);
    s10.intoArray(x, SUMS + VL);
    s20.intoArray(x, SUMS + 2 * VL);
    s30.intoArray(x, SUMS + 3 * VL);
    s01.intoArray(x, SUMS + 4 * VL);
    s11.intoArray(x, SUMS + 5 * VL);
    s21.intoArray(x, SUMS + 6 * VL);
    s31.intoArray(x, SUMS + 7 * VL);
  }

  private static void dot4x3(MemorySegment w, long w0, long wStride, float[] x, int bound) {
    w = SegmentClass.known(w, MEMORY);
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s22 = FloatVector.zero(F);
    FloatVector s32 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromArray(F, x, k + XS);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromArray(F, x, k + 2 * XS);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
    }
    s00.intoArray(x, SUMS);
    s10.intoArray(x, SUMS + VL);
    s20.intoArray(x, SUMS + 2 * VL);
    s30.intoArray(x, SUMS + 3 * VL);
    s01.intoArray(x, SUMS + 4 * VL);
    s11.intoArray(x, SUMS + 5 * VL);
    s21.intoArray(x, SUMS + 6 * VL);
    s31.intoArray(x, SUMS + 7 * VL);
    s02.intoArray(x, SUMS + 8 * VL);
    s12.intoArray(x, SUMS + 9 * VL);
    s22.intoArray(x, SUMS + 10 * VL);
    s32.intoArray(x, SUMS + 11 * VL);
  }

  private static void dot4x4(MemorySegment w, long w0, long wStride, float[] x, int bound) {
    w = SegmentClass.known(w, MEMORY);
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s22 = FloatVector.zero(F);
    FloatVector s32 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s23 = FloatVector.zero(F);
    FloatVector s33 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromArray(F, x, k + XS);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromArray(F, x, k + 2 * XS);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
      FloatVector v3 = FloatVector.fromArray(F, x, k + 3 * XS);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      s23 = a2.fma(v3, s23);
      s33 = a3.fma(v3, s33);
    }
    s00.intoArray(x, SUMS);
    s10.intoArray(x, SUMS + VL);
    s20.intoArray(x, SUMS + 2 * VL);
    s30.intoArray(x, SUMS + 3 * VL);
    s01.intoArray(x, SUMS + 4 * VL);
    s11.intoArray(x, SUMS + 5 * VL);
    s21.intoArray(x, SUMS + 6 * VL);
    s31.intoArray(x, SUMS + 7 * VL);
    s02.intoArray(x, SUMS + 8 * VL);
    s12.intoArray(x, SUMS + 9 * VL);
    s22.intoArray(x, SUMS + 10 * VL);
    s32.intoArray(x, SUMS + 11 * VL);
    s03.intoArray(x, SUMS + 12 * VL);
    s13.intoArray(x, SUMS + 13 * VL);
    s23.intoArray(x, SUMS + 14 * VL);
    s33.intoArray(x, SUMS + 15 * VL);
  }

  private static void dot4x5(MemorySegment w, long w0, long wStride, float[] x, int bound) {
    w = SegmentClass.known(w, MEMORY);
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s22 = FloatVector.zero(F);
    FloatVector s32 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s23 = FloatVector.zero(F);
    FloatVector s33 = FloatVector.zero(F);
    FloatVector s04 = FloatVector.zero(F);
    FloatVector s14 = FloatVector.zero(F);
    FloatVector s24 = FloatVector.zero(F);
    FloatVector s34 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromArray(F, x, k + XS);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromArray(F, x, k + 2 * XS);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
      FloatVector v3 = FloatVector.fromArray(F, x, k + 3 * XS);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      s23 = a2.fma(v3, s23);
      s33 = a3.fma(v3, s33);
      FloatVector v4 = FloatVector.fromArray(F, x, k + 4 * XS);
      s04 = a0.fma(v4, s04);
      s14 = a1.fma(v4, s14);
      s24 = a2.fma(v4, s24);
      s34 = a3.fma(v4, s34);
    }
    s00.intoArray(x, SUMS);
    s10.intoArray(x, SUMS + VL);
    s20.intoArray(x, SUMS + 2 * VL);
    s30.intoArray(x, SUMS + 3 * VL);
    s01.intoArray(x, SUMS + 4 * VL);
    s11.intoArray(x, SUMS + 5 * VL);
    s21.intoArray(x, SUMS + 6 * VL);
    s31.intoArray(x, SUMS + 7 * VL);
    s02.intoArray(x, SUMS + 8 * VL);
    s12.intoArray(x, SUMS + 9 * VL);
    s22.intoArray(x, SUMS + 10 * VL);
    s32.intoArray(x, SUMS + 11 * VL);
    s03.intoArray(x, SUMS + 12 * VL);
    s13.intoArray(x, SUMS + 13 * VL);
    s23.intoArray(x, SUMS + 14 * VL);
    s33.intoArray(x, SUMS + 15 * VL);
    s04.intoArray(x, SUMS + 16 * VL);
    s14.intoArray(x, SUMS + 17 * VL);
    s24.intoArray(x, SUMS + 18 * VL);
    s34.intoArray(x, SUMS + 19 * VL);
  }

  private static void dot4x6(MemorySegment w, long w0, long wStride, float[] x, int bound) {
    w = SegmentClass.known(w, MEMORY);
    long w1 = w0 + wStride;
    long w2 = w1 + wStride;
    long w3 = w2 + wStride;
    FloatVector s00 = FloatVector.zero(F);
    FloatVector s10 = FloatVector.zero(F);
    FloatVector s20 = FloatVector.zero(F);
    FloatVector s30 = FloatVector.zero(F);
    FloatVector s01 = FloatVector.zero(F);
    FloatVector s11 = FloatVector.zero(F);
    FloatVector s21 = FloatVector.zero(F);
    FloatVector s31 = FloatVector.zero(F);
    FloatVector s02 = FloatVector.zero(F);
    FloatVector s12 = FloatVector.zero(F);
    FloatVector s22 = FloatVector.zero(F);
    FloatVector s32 = FloatVector.zero(F);
    FloatVector s03 = FloatVector.zero(F);
    FloatVector s13 = FloatVector.zero(F);
    FloatVector s23 = FloatVector.zero(F);
    FloatVector s33 = FloatVector.zero(F);
    FloatVector s04 = FloatVector.zero(F);
    FloatVector s14 = FloatVector.zero(F);
    FloatVector s24 = FloatVector.zero(F);
    FloatVector s34 = FloatVector.zero(F);
    FloatVector s05 = FloatVector.zero(F);
    FloatVector s15 = FloatVector.zero(F);
    FloatVector s25 = FloatVector.zero(F);
    FloatVector s35 = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      FloatVector a0 = load(w, w0 + (long) BYTES * k);
      FloatVector a1 = load(w, w1 + (long) BYTES * k);
      FloatVector a2 = load(w, w2 + (long) BYTES * k);
      FloatVector a3 = load(w, w3 + (long) BYTES * k);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromArray(F, x, k + XS);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromArray(F, x, k + 2 * XS);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
      FloatVector v3 = FloatVector.fromArray(F, x, k + 3 * XS);
      s03 = a0.fma(v3, s03);
      s13 = a1.fma(v3, s13);
      s23 = a2.fma(v3, s23);
      s33 = a3.fma(v3, s33);
      FloatVector v4 = FloatVector.fromArray(F, x, k + 4 * XS);
      s04 = a0.fma(v4, s04);
      s14 = a1.fma(v4, s14);
      s24 = a2.fma(v4, s24);
      s34 = a3.fma(v4, s34);
      FloatVector v5 = FloatVector.fromArray(F, x, k + 5 * XS);
      s05 = a0.fma(v5, s05);
      s15 = a1.fma(v5, s15);
      s25 = a2.fma(v5, s25);
      s35 = a3.fma(v5, s35);
    }
    s00.intoArray(x, SUMS);
    s10.intoArray(x, SUMS + VL);
    s20.intoArray(x, SUMS + 2 * VL);
    s30.intoArray(x, SUMS + 3 * VL);
    s01.intoArray(x, SUMS + 4 * VL);
    s11.intoArray(x, SUMS + 5 * VL);
    s21.intoArray(x, SUMS + 6 * VL);
    s31.intoArray(x, SUMS + 7 * VL);
    s02.intoArray(x, SUMS + 8 * VL);
    s12.intoArray(x, SUMS + 9 * VL);
    s22.intoArray(x, SUMS + 10 * VL);
    s32.intoArray(x, SUMS + 11 * VL);
    s03.intoArray(x, SUMS + 12 * VL);
    s13.intoArray(x, SUMS + 13 * VL);
    s23.intoArray(x, SUMS + 14 * VL);
    s33.intoArray(x, SUMS + 15 * VL);
    s04.intoArray(x, SUMS + 16 * VL);
    s14.intoArray(x, SUMS + 17 * VL);
    s24.intoArray(x, SUMS + 18 * VL);
    s34.intoArray(x, SUMS + 19 * VL);
    s05.intoArray(x, SUMS + 20 * VL);
    s15.intoArray(x, SUMS + 21 * VL);
    s25.intoArray(x, SUMS + 22 * VL);
    s35.intoArray(x, SUMS + 23 * VL);
  }

  private static void dot1x1(MemorySegment w, long w0, float[] x, int x0, int bound) {
    w = SegmentClass.known(w, MEMORY);
    FloatVector s = FloatVector.zero(F);
    for (int k = 0; k < bound; k += VL) {
      s = load(w, w0 + (long) BYTES * k).fma(FloatVector.fromArray(F, x, x0 + k), s);
    }
    s.intoArray(x, SUMS);
  }

  @Override
  public void widen(
      MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n, float scale) {
    if (src.getClass() != MEMORY || dst.getClass() != SegmentClass.NATIVE) {
      SCALAR.widen(src, srcOffset, dst, dstOffset, n, scale);
      return;
    }
    int bound = F.loopBound(n);
    for (int i = 0; i < bound; i += VL) {
      load(src, srcOffset + (long) BYTES * i)
          .mul(scale)
          .intoMemorySegment(dst, dstOffset + 4L * i, LE);
    }
    for (int i = bound; i < n; i++) {
      dst.set(ScalarKernels.F32, dstOffset + 4L * i, readOne(src, srcOffset, i) * scale);
    }
  }

  @Override
  public void widen(MemorySegment src, long srcOffset, float[] dst, int at, int n) {
    if (src.getClass() != MEMORY) {
      SCALAR.widen(src, srcOffset, dst, at, n);
      return;
    }
    int bound = F.loopBound(n);
    for (int i = 0; i < bound; i += VL) {
      load(src, srcOffset + (long) BYTES * i).intoArray(dst, at + i);
    }
    for (int i = bound; i < n; i++) {
      dst[at + i] = readOne(src, srcOffset, i);
    }
  }

  @Override
  public void axpy(
      float factor, MemorySegment src, long srcOffset, MemorySegment dst, long dstOffset, int n) {
    if (src.getClass() != MEMORY || dst.getClass() != SegmentClass.NATIVE) {
      SCALAR.axpy(factor, src, srcOffset, dst, dstOffset, n);
      return;
    }
    int bound = F.loopBound(n);
    FloatVector f = FloatVector.broadcast(F, factor);
    for (int i = 0; i < bound; i += VL) {
      FloatVector d = FloatVector.fromMemorySegment(F, dst, dstOffset + 4L * i, LE);
      load(src, srcOffset + (long) BYTES * i)
          .fma(f, d)
          .intoMemorySegment(dst, dstOffset + 4L * i, LE);
    }
    for (int i = bound; i < n; i++) {
      long at = dstOffset + 4L * i;
      dst.set(
          ScalarKernels.F32,
          at,
          Math.fma(factor, readOne(src, srcOffset, i), dst.get(ScalarKernels.F32, at)));
    }
  }
}
