package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * The product of twelve rows and a panel of tokens, vectors along the tokens: each weight is
 * broadcast and meets one or two vectors of tokens, so nothing is summed across lanes. Twelve
 * accumulators keep two multipliers of latency four busy and fit sixteen registers. More of them,
 * although AVX-512 has the registers, make a method that the first compiler gives up on ("out of
 * virtual registers"), and then it is not compiled by the second either and stays a hundred times
 * slower. The weights are an array and their rows a constant distance apart, so that one register
 * addresses all of them and the compiler checks the bounds before the loop, not in it. In passing,
 * each loop reads a little of the weights that come next, so that memory works while the
 * multipliers do; Java has no prefetch instruction, and the processor's own prefetcher follows
 * these reads.
 */
final class VectorPanel {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final int VL = F.length();
  private static final long VB = 4L * VL;
  private static final ValueLayout.OfLong J = ValueLayout.JAVA_LONG_UNALIGNED;
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final int WS = Kernels.PANEL_STRIDE;

  private VectorPanel() {}

  static long multiply(
      float[] w,
      int w0,
      MemorySegment x,
      long x0,
      int vectors,
      int k,
      MemorySegment c,
      long c0,
      MemorySegment next,
      long n0,
      long step) {
    if (vectors == 1) {
      return rows12x1(w, w0, x, x0, k, c, c0, next, n0, step);
    }
    return rows6x2(w, w0, x, x0, k, c, c0, next, n0, step)
        ^ rows6x2(w, w0 + 6 * WS, x, x0, k, c, c0 + 12 * VB, next, n0, step);
  }

  private static long rows12x1(
      float[] w,
      int w0,
      MemorySegment x,
      long x0,
      int k,
      MemorySegment c,
      long c0,
      MemorySegment next,
      long n0,
      long step) {
    long seen = 0;
    FloatVector s0v0 = FloatVector.fromMemorySegment(F, c, c0, LE);
    FloatVector s1v0 = FloatVector.fromMemorySegment(F, c, c0 + VB, LE);
    FloatVector s2v0 = FloatVector.fromMemorySegment(F, c, c0 + 2 * VB, LE);
    FloatVector s3v0 = FloatVector.fromMemorySegment(F, c, c0 + 3 * VB, LE);
    FloatVector s4v0 = FloatVector.fromMemorySegment(F, c, c0 + 4 * VB, LE);
    FloatVector s5v0 = FloatVector.fromMemorySegment(F, c, c0 + 5 * VB, LE);
    FloatVector s6v0 = FloatVector.fromMemorySegment(F, c, c0 + 6 * VB, LE);
    FloatVector s7v0 = FloatVector.fromMemorySegment(F, c, c0 + 7 * VB, LE);
    FloatVector s8v0 = FloatVector.fromMemorySegment(F, c, c0 + 8 * VB, LE);
    FloatVector s9v0 = FloatVector.fromMemorySegment(F, c, c0 + 9 * VB, LE);
    FloatVector s10v0 = FloatVector.fromMemorySegment(F, c, c0 + 10 * VB, LE);
    FloatVector s11v0 = FloatVector.fromMemorySegment(F, c, c0 + 11 * VB, LE);
    for (int i = 0; i < k; i++) {
      seen ^= next.get(J, n0 + i * step);
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
    s0v0.intoMemorySegment(c, c0, LE);
    s1v0.intoMemorySegment(c, c0 + VB, LE);
    s2v0.intoMemorySegment(c, c0 + 2 * VB, LE);
    s3v0.intoMemorySegment(c, c0 + 3 * VB, LE);
    s4v0.intoMemorySegment(c, c0 + 4 * VB, LE);
    s5v0.intoMemorySegment(c, c0 + 5 * VB, LE);
    s6v0.intoMemorySegment(c, c0 + 6 * VB, LE);
    s7v0.intoMemorySegment(c, c0 + 7 * VB, LE);
    s8v0.intoMemorySegment(c, c0 + 8 * VB, LE);
    s9v0.intoMemorySegment(c, c0 + 9 * VB, LE);
    s10v0.intoMemorySegment(c, c0 + 10 * VB, LE);
    s11v0.intoMemorySegment(c, c0 + 11 * VB, LE);
    return seen;
  }

  private static long rows6x2(
      float[] w,
      int w0,
      MemorySegment x,
      long x0,
      int k,
      MemorySegment c,
      long c0,
      MemorySegment next,
      long n0,
      long step) {
    long seen = 0;
    FloatVector s0v0 = FloatVector.fromMemorySegment(F, c, c0, LE);
    FloatVector s0v1 = FloatVector.fromMemorySegment(F, c, c0 + VB, LE);
    FloatVector s1v0 = FloatVector.fromMemorySegment(F, c, c0 + 2 * VB, LE);
    FloatVector s1v1 = FloatVector.fromMemorySegment(F, c, c0 + 3 * VB, LE);
    FloatVector s2v0 = FloatVector.fromMemorySegment(F, c, c0 + 4 * VB, LE);
    FloatVector s2v1 = FloatVector.fromMemorySegment(F, c, c0 + 5 * VB, LE);
    FloatVector s3v0 = FloatVector.fromMemorySegment(F, c, c0 + 6 * VB, LE);
    FloatVector s3v1 = FloatVector.fromMemorySegment(F, c, c0 + 7 * VB, LE);
    FloatVector s4v0 = FloatVector.fromMemorySegment(F, c, c0 + 8 * VB, LE);
    FloatVector s4v1 = FloatVector.fromMemorySegment(F, c, c0 + 9 * VB, LE);
    FloatVector s5v0 = FloatVector.fromMemorySegment(F, c, c0 + 10 * VB, LE);
    FloatVector s5v1 = FloatVector.fromMemorySegment(F, c, c0 + 11 * VB, LE);
    for (int i = 0; i < k; i++) {
      seen ^= next.get(J, n0 + i * step);
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
    s0v0.intoMemorySegment(c, c0, LE);
    s0v1.intoMemorySegment(c, c0 + VB, LE);
    s1v0.intoMemorySegment(c, c0 + 2 * VB, LE);
    s1v1.intoMemorySegment(c, c0 + 3 * VB, LE);
    s2v0.intoMemorySegment(c, c0 + 4 * VB, LE);
    s2v1.intoMemorySegment(c, c0 + 5 * VB, LE);
    s3v0.intoMemorySegment(c, c0 + 6 * VB, LE);
    s3v1.intoMemorySegment(c, c0 + 7 * VB, LE);
    s4v0.intoMemorySegment(c, c0 + 8 * VB, LE);
    s4v1.intoMemorySegment(c, c0 + 9 * VB, LE);
    s5v0.intoMemorySegment(c, c0 + 10 * VB, LE);
    s5v1.intoMemorySegment(c, c0 + 11 * VB, LE);
    return seen;
  }
}
