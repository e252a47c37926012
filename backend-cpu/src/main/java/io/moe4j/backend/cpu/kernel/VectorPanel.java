package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * The product of twelve rows and a panel of tokens, vectors along the tokens: each weight is
 * broadcast and meets one, two or four vectors of tokens, so nothing is summed across lanes. Twelve
 * accumulators keep two multipliers of latency four busy and fit sixteen registers; with the 32
 * registers of AVX-512, twenty-four of them halve the loads for each multiply-add.
 *
 * <p>Weights and sums are arrays, so that one register addresses all rows of weights and the
 * compiler checks the bounds before the loop. It also keeps the methods small: loading and storing
 * 24 accumulators through a segment made one that HotSpot's first compiler refuses ("out of
 * virtual registers"), and then it is interpreted, a thousand times slower, for seconds.
 */
final class VectorPanel {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();
  private static final long VB = 4L * VL;
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final int WS = Kernels.PANEL_STRIDE;

  private VectorPanel() {}

  static void multiply(
      float[] w, int w0, MemorySegment x, long x0, int vectors, int k, float[] c, int c0) {
    switch (vectors) {
      case 1 -> rows12x1(w, w0, x, x0, k, c, c0);
      case 2 -> {
        rows6x2(w, w0, x, x0, k, c, c0);
        rows6x2(w, w0 + 6 * WS, x, x0, k, c, c0 + 12 * VL);
      }
      default -> {
        rows6x4(w, w0, x, x0, k, c, c0);
        rows6x4(w, w0 + 6 * WS, x, x0, k, c, c0 + 24 * VL);
      }
    }
  }

  private static void rows12x1(
      float[] w, int w0, MemorySegment x, long x0, int k, float[] c, int c0) {
    x = SegmentClass.known(x, SegmentClass.NATIVE);
    FloatVector s0v0 = FloatVector.fromArray(F, c, c0);
    FloatVector s1v0 = FloatVector.fromArray(F, c, c0 + VL);
    FloatVector s2v0 = FloatVector.fromArray(F, c, c0 + 2 * VL);
    FloatVector s3v0 = FloatVector.fromArray(F, c, c0 + 3 * VL);
    FloatVector s4v0 = FloatVector.fromArray(F, c, c0 + 4 * VL);
    FloatVector s5v0 = FloatVector.fromArray(F, c, c0 + 5 * VL);
    FloatVector s6v0 = FloatVector.fromArray(F, c, c0 + 6 * VL);
    FloatVector s7v0 = FloatVector.fromArray(F, c, c0 + 7 * VL);
    FloatVector s8v0 = FloatVector.fromArray(F, c, c0 + 8 * VL);
    FloatVector s9v0 = FloatVector.fromArray(F, c, c0 + 9 * VL);
    FloatVector s10v0 = FloatVector.fromArray(F, c, c0 + 10 * VL);
    FloatVector s11v0 = FloatVector.fromArray(F, c, c0 + 11 * VL);
    for (int i = 0; i < k; i++) {
      long q = x0 + i * VB;
      FloatVector t0 = FloatVector.fromMemorySegment(F, x, q, LE);
      FloatVector b0 = FloatVector.broadcast(F, w[w0 + i]);
      s0v0 = t0.fma(b0, s0v0);
      FloatVector b1 = FloatVector.broadcast(F, w[w0 + i + WS]);
      s1v0 = t0.fma(b1, s1v0);
      FloatVector b2 = FloatVector.broadcast(F, w[w0 + i + 2 * WS]);
      s2v0 = t0.fma(b2, s2v0);
      FloatVector b3 = FloatVector.broadcast(F, w[w0 + i + 3 * WS]);
      s3v0 = t0.fma(b3, s3v0);
      FloatVector b4 = FloatVector.broadcast(F, w[w0 + i + 4 * WS]);
      s4v0 = t0.fma(b4, s4v0);
      FloatVector b5 = FloatVector.broadcast(F, w[w0 + i + 5 * WS]);
      s5v0 = t0.fma(b5, s5v0);
      FloatVector b6 = FloatVector.broadcast(F, w[w0 + i + 6 * WS]);
      s6v0 = t0.fma(b6, s6v0);
      FloatVector b7 = FloatVector.broadcast(F, w[w0 + i + 7 * WS]);
      s7v0 = t0.fma(b7, s7v0);
      FloatVector b8 = FloatVector.broadcast(F, w[w0 + i + 8 * WS]);
      s8v0 = t0.fma(b8, s8v0);
      FloatVector b9 = FloatVector.broadcast(F, w[w0 + i + 9 * WS]);
      s9v0 = t0.fma(b9, s9v0);
      FloatVector b10 = FloatVector.broadcast(F, w[w0 + i + 10 * WS]);
      s10v0 = t0.fma(b10, s10v0);
      FloatVector b11 = FloatVector.broadcast(F, w[w0 + i + 11 * WS]);
      s11v0 = t0.fma(b11, s11v0);
    }
    s0v0.intoArray(c, c0);
    s1v0.intoArray(c, c0 + VL);
    s2v0.intoArray(c, c0 + 2 * VL);
    s3v0.intoArray(c, c0 + 3 * VL);
    s4v0.intoArray(c, c0 + 4 * VL);
    s5v0.intoArray(c, c0 + 5 * VL);
    s6v0.intoArray(c, c0 + 6 * VL);
    s7v0.intoArray(c, c0 + 7 * VL);
    s8v0.intoArray(c, c0 + 8 * VL);
    s9v0.intoArray(c, c0 + 9 * VL);
    s10v0.intoArray(c, c0 + 10 * VL);
    s11v0.intoArray(c, c0 + 11 * VL);
  }

  private static void rows6x2(
      float[] w, int w0, MemorySegment x, long x0, int k, float[] c, int c0) {
    x = SegmentClass.known(x, SegmentClass.NATIVE);
    FloatVector s0v0 = FloatVector.fromArray(F, c, c0);
    FloatVector s0v1 = FloatVector.fromArray(F, c, c0 + VL);
    FloatVector s1v0 = FloatVector.fromArray(F, c, c0 + 2 * VL);
    FloatVector s1v1 = FloatVector.fromArray(F, c, c0 + 3 * VL);
    FloatVector s2v0 = FloatVector.fromArray(F, c, c0 + 4 * VL);
    FloatVector s2v1 = FloatVector.fromArray(F, c, c0 + 5 * VL);
    FloatVector s3v0 = FloatVector.fromArray(F, c, c0 + 6 * VL);
    FloatVector s3v1 = FloatVector.fromArray(F, c, c0 + 7 * VL);
    FloatVector s4v0 = FloatVector.fromArray(F, c, c0 + 8 * VL);
    FloatVector s4v1 = FloatVector.fromArray(F, c, c0 + 9 * VL);
    FloatVector s5v0 = FloatVector.fromArray(F, c, c0 + 10 * VL);
    FloatVector s5v1 = FloatVector.fromArray(F, c, c0 + 11 * VL);
    for (int i = 0; i < k; i++) {
      long q = x0 + i * (2 * VB);
      FloatVector t0 = FloatVector.fromMemorySegment(F, x, q, LE);
      FloatVector t1 = FloatVector.fromMemorySegment(F, x, q + VB, LE);
      FloatVector b0 = FloatVector.broadcast(F, w[w0 + i]);
      s0v0 = t0.fma(b0, s0v0);
      s0v1 = t1.fma(b0, s0v1);
      FloatVector b1 = FloatVector.broadcast(F, w[w0 + i + WS]);
      s1v0 = t0.fma(b1, s1v0);
      s1v1 = t1.fma(b1, s1v1);
      FloatVector b2 = FloatVector.broadcast(F, w[w0 + i + 2 * WS]);
      s2v0 = t0.fma(b2, s2v0);
      s2v1 = t1.fma(b2, s2v1);
      FloatVector b3 = FloatVector.broadcast(F, w[w0 + i + 3 * WS]);
      s3v0 = t0.fma(b3, s3v0);
      s3v1 = t1.fma(b3, s3v1);
      FloatVector b4 = FloatVector.broadcast(F, w[w0 + i + 4 * WS]);
      s4v0 = t0.fma(b4, s4v0);
      s4v1 = t1.fma(b4, s4v1);
      FloatVector b5 = FloatVector.broadcast(F, w[w0 + i + 5 * WS]);
      s5v0 = t0.fma(b5, s5v0);
      s5v1 = t1.fma(b5, s5v1);
    }
    s0v0.intoArray(c, c0);
    s0v1.intoArray(c, c0 + VL);
    s1v0.intoArray(c, c0 + 2 * VL);
    s1v1.intoArray(c, c0 + 3 * VL);
    s2v0.intoArray(c, c0 + 4 * VL);
    s2v1.intoArray(c, c0 + 5 * VL);
    s3v0.intoArray(c, c0 + 6 * VL);
    s3v1.intoArray(c, c0 + 7 * VL);
    s4v0.intoArray(c, c0 + 8 * VL);
    s4v1.intoArray(c, c0 + 9 * VL);
    s5v0.intoArray(c, c0 + 10 * VL);
    s5v1.intoArray(c, c0 + 11 * VL);
  }

  private static void rows6x4(
      float[] w, int w0, MemorySegment x, long x0, int k, float[] c, int c0) {
    x = SegmentClass.known(x, SegmentClass.NATIVE);
    FloatVector s0v0 = FloatVector.fromArray(F, c, c0);
    FloatVector s0v1 = FloatVector.fromArray(F, c, c0 + VL);
    FloatVector s0v2 = FloatVector.fromArray(F, c, c0 + 2 * VL);
    FloatVector s0v3 = FloatVector.fromArray(F, c, c0 + 3 * VL);
    FloatVector s1v0 = FloatVector.fromArray(F, c, c0 + 4 * VL);
    FloatVector s1v1 = FloatVector.fromArray(F, c, c0 + 5 * VL);
    FloatVector s1v2 = FloatVector.fromArray(F, c, c0 + 6 * VL);
    FloatVector s1v3 = FloatVector.fromArray(F, c, c0 + 7 * VL);
    FloatVector s2v0 = FloatVector.fromArray(F, c, c0 + 8 * VL);
    FloatVector s2v1 = FloatVector.fromArray(F, c, c0 + 9 * VL);
    FloatVector s2v2 = FloatVector.fromArray(F, c, c0 + 10 * VL);
    FloatVector s2v3 = FloatVector.fromArray(F, c, c0 + 11 * VL);
    FloatVector s3v0 = FloatVector.fromArray(F, c, c0 + 12 * VL);
    FloatVector s3v1 = FloatVector.fromArray(F, c, c0 + 13 * VL);
    FloatVector s3v2 = FloatVector.fromArray(F, c, c0 + 14 * VL);
    FloatVector s3v3 = FloatVector.fromArray(F, c, c0 + 15 * VL);
    FloatVector s4v0 = FloatVector.fromArray(F, c, c0 + 16 * VL);
    FloatVector s4v1 = FloatVector.fromArray(F, c, c0 + 17 * VL);
    FloatVector s4v2 = FloatVector.fromArray(F, c, c0 + 18 * VL);
    FloatVector s4v3 = FloatVector.fromArray(F, c, c0 + 19 * VL);
    FloatVector s5v0 = FloatVector.fromArray(F, c, c0 + 20 * VL);
    FloatVector s5v1 = FloatVector.fromArray(F, c, c0 + 21 * VL);
    FloatVector s5v2 = FloatVector.fromArray(F, c, c0 + 22 * VL);
    FloatVector s5v3 = FloatVector.fromArray(F, c, c0 + 23 * VL);
    for (int i = 0; i < k; i++) {
      long q = x0 + i * (4 * VB);
      FloatVector t0 = FloatVector.fromMemorySegment(F, x, q, LE);
      FloatVector t1 = FloatVector.fromMemorySegment(F, x, q + VB, LE);
      FloatVector t2 = FloatVector.fromMemorySegment(F, x, q + 2 * VB, LE);
      FloatVector t3 = FloatVector.fromMemorySegment(F, x, q + 3 * VB, LE);
      FloatVector b0 = FloatVector.broadcast(F, w[w0 + i]);
      s0v0 = t0.fma(b0, s0v0);
      s0v1 = t1.fma(b0, s0v1);
      s0v2 = t2.fma(b0, s0v2);
      s0v3 = t3.fma(b0, s0v3);
      FloatVector b1 = FloatVector.broadcast(F, w[w0 + i + WS]);
      s1v0 = t0.fma(b1, s1v0);
      s1v1 = t1.fma(b1, s1v1);
      s1v2 = t2.fma(b1, s1v2);
      s1v3 = t3.fma(b1, s1v3);
      FloatVector b2 = FloatVector.broadcast(F, w[w0 + i + 2 * WS]);
      s2v0 = t0.fma(b2, s2v0);
      s2v1 = t1.fma(b2, s2v1);
      s2v2 = t2.fma(b2, s2v2);
      s2v3 = t3.fma(b2, s2v3);
      FloatVector b3 = FloatVector.broadcast(F, w[w0 + i + 3 * WS]);
      s3v0 = t0.fma(b3, s3v0);
      s3v1 = t1.fma(b3, s3v1);
      s3v2 = t2.fma(b3, s3v2);
      s3v3 = t3.fma(b3, s3v3);
      FloatVector b4 = FloatVector.broadcast(F, w[w0 + i + 4 * WS]);
      s4v0 = t0.fma(b4, s4v0);
      s4v1 = t1.fma(b4, s4v1);
      s4v2 = t2.fma(b4, s4v2);
      s4v3 = t3.fma(b4, s4v3);
      FloatVector b5 = FloatVector.broadcast(F, w[w0 + i + 5 * WS]);
      s5v0 = t0.fma(b5, s5v0);
      s5v1 = t1.fma(b5, s5v1);
      s5v2 = t2.fma(b5, s5v2);
      s5v3 = t3.fma(b5, s5v3);
    }
    s0v0.intoArray(c, c0);
    s0v1.intoArray(c, c0 + VL);
    s0v2.intoArray(c, c0 + 2 * VL);
    s0v3.intoArray(c, c0 + 3 * VL);
    s1v0.intoArray(c, c0 + 4 * VL);
    s1v1.intoArray(c, c0 + 5 * VL);
    s1v2.intoArray(c, c0 + 6 * VL);
    s1v3.intoArray(c, c0 + 7 * VL);
    s2v0.intoArray(c, c0 + 8 * VL);
    s2v1.intoArray(c, c0 + 9 * VL);
    s2v2.intoArray(c, c0 + 10 * VL);
    s2v3.intoArray(c, c0 + 11 * VL);
    s3v0.intoArray(c, c0 + 12 * VL);
    s3v1.intoArray(c, c0 + 13 * VL);
    s3v2.intoArray(c, c0 + 14 * VL);
    s3v3.intoArray(c, c0 + 15 * VL);
    s4v0.intoArray(c, c0 + 16 * VL);
    s4v1.intoArray(c, c0 + 17 * VL);
    s4v2.intoArray(c, c0 + 18 * VL);
    s4v3.intoArray(c, c0 + 19 * VL);
    s5v0.intoArray(c, c0 + 20 * VL);
    s5v1.intoArray(c, c0 + 21 * VL);
    s5v2.intoArray(c, c0 + 22 * VL);
    s5v3.intoArray(c, c0 + 23 * VL);
  }
}
