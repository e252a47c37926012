package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * Widened rows times the few tokens that do not fill a panel, four rows and four tokens at a time,
 * vectors along the columns.
 */
final class VectorRows {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();
  private static final int WS = Kernels.PANEL_STRIDE;
  private static final int SUMS = Kernels.ROW_TOKENS * WS;

  private VectorRows() {}

  static void multiply(
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
    int bound = F.loopBound(k);
    for (int r = 0; r < rows; r += 4) {
      int row = w0 + r * WS;
      long o = outOffset + 4L * r;
      dot4x4(w, row, x, bound);
      Lanes.fold(x, SUMS, 4, tokens, out, o, outStride, add);
      if (bound < k) {
        rest(w, row, x, tokens, bound, k, out, o, outStride);
      }
    }
  }

  private static void rest(
      float[] w,
      int w0,
      float[] x,
      int tokens,
      int from,
      int to,
      MemorySegment out,
      long o,
      long os) {
    for (int j = 0; j < tokens; j++) {
      for (int r = 0; r < 4; r++) {
        float sum = 0;
        for (int i = from; i < to; i++) {
          sum += w[w0 + r * WS + i] * x[j * WS + i];
        }
        long at = o + j * os + 4L * r;
        out.set(ScalarKernels.F32, at, out.get(ScalarKernels.F32, at) + sum);
      }
    }
  }

  private static void dot4x4(float[] w, int w0, float[] x, int bound) {
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
      FloatVector a0 = FloatVector.fromArray(F, w, w0 + k);
      FloatVector a1 = FloatVector.fromArray(F, w, w0 + k + WS);
      FloatVector a2 = FloatVector.fromArray(F, w, w0 + k + 2 * WS);
      FloatVector a3 = FloatVector.fromArray(F, w, w0 + k + 3 * WS);
      FloatVector v0 = FloatVector.fromArray(F, x, k);
      s00 = a0.fma(v0, s00);
      s10 = a1.fma(v0, s10);
      s20 = a2.fma(v0, s20);
      s30 = a3.fma(v0, s30);
      FloatVector v1 = FloatVector.fromArray(F, x, k + WS);
      s01 = a0.fma(v1, s01);
      s11 = a1.fma(v1, s11);
      s21 = a2.fma(v1, s21);
      s31 = a3.fma(v1, s31);
      FloatVector v2 = FloatVector.fromArray(F, x, k + 2 * WS);
      s02 = a0.fma(v2, s02);
      s12 = a1.fma(v2, s12);
      s22 = a2.fma(v2, s22);
      s32 = a3.fma(v2, s32);
      FloatVector v3 = FloatVector.fromArray(F, x, k + 3 * WS);
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
}
