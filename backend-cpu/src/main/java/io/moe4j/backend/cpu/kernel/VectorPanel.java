package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorSpecies;

/**
 * The product of twelve rows and a panel of tokens, vectors along the tokens: each weight is
 * broadcast and meets one or two vectors of tokens, so nothing is summed across lanes. Twelve rows
 * by two vectors are 24 accumulators, right for 32 registers; with 16 registers (AVX2) the rows go
 * six at a time. The distance between rows is a constant so that one base register addresses all of
 * them. In passing, each loop reads a little of the weights that come next, so that memory works
 * while the multipliers do; Java has no prefetch instruction, and the processor's own prefetcher
 * follows these reads.
 */
final class VectorPanel {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
  private static final int VL = F.length();
  private static final long VB = 4L * VL;
  private static final ValueLayout.OfLong J = ValueLayout.JAVA_LONG_UNALIGNED;
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;
  private static final long WS = 4L * Kernels.PANEL_STRIDE;
  private static final boolean MANY_REGISTERS = F.vectorBitSize() >= 512;

  private VectorPanel() {}

  static long multiply(
      MemorySegment w,
      long wOffset,
      MemorySegment x,
      long xOffset,
      int vectors,
      int k,
      MemorySegment c,
      long cOffset,
      MemorySegment nextA,
      long a0,
      MemorySegment nextB,
      long b0,
      long step) {
    if (vectors == 1) {
      return rows12x1(w, wOffset, x, xOffset, k, c, cOffset, nextA, a0, nextB, b0, step);
    }
    if (MANY_REGISTERS) {
      return rows12x2(w, wOffset, x, xOffset, k, c, cOffset, nextA, a0, nextB, b0, step);
    }
    return rows6x2(w, wOffset, x, xOffset, k, c, cOffset, nextA, a0, nextB, b0, step)
        ^ rows6x2(
            w, wOffset + 6 * WS, x, xOffset, k, c, cOffset + 12 * VB, nextA, a0, nextB, b0, step);
  }

  private static long rows12x2(
      MemorySegment w,
      long w0,
      MemorySegment x,
      long x0,
      int k,
      MemorySegment c,
      long c0,
      MemorySegment nextA,
      long a0,
      MemorySegment nextB,
      long b0,
      long step) {
    long seen = 0;
    FloatVector s0x0 = FloatVector.fromMemorySegment(F, c, c0, LE);
    FloatVector s0x1 = FloatVector.fromMemorySegment(F, c, c0 + VB, LE);
    FloatVector s1x0 = FloatVector.fromMemorySegment(F, c, c0 + 2 * VB, LE);
    FloatVector s1x1 = FloatVector.fromMemorySegment(F, c, c0 + 3 * VB, LE);
    FloatVector s2x0 = FloatVector.fromMemorySegment(F, c, c0 + 4 * VB, LE);
    FloatVector s2x1 = FloatVector.fromMemorySegment(F, c, c0 + 5 * VB, LE);
    FloatVector s3x0 = FloatVector.fromMemorySegment(F, c, c0 + 6 * VB, LE);
    FloatVector s3x1 = FloatVector.fromMemorySegment(F, c, c0 + 7 * VB, LE);
    FloatVector s4x0 = FloatVector.fromMemorySegment(F, c, c0 + 8 * VB, LE);
    FloatVector s4x1 = FloatVector.fromMemorySegment(F, c, c0 + 9 * VB, LE);
    FloatVector s5x0 = FloatVector.fromMemorySegment(F, c, c0 + 10 * VB, LE);
    FloatVector s5x1 = FloatVector.fromMemorySegment(F, c, c0 + 11 * VB, LE);
    FloatVector s6x0 = FloatVector.fromMemorySegment(F, c, c0 + 12 * VB, LE);
    FloatVector s6x1 = FloatVector.fromMemorySegment(F, c, c0 + 13 * VB, LE);
    FloatVector s7x0 = FloatVector.fromMemorySegment(F, c, c0 + 14 * VB, LE);
    FloatVector s7x1 = FloatVector.fromMemorySegment(F, c, c0 + 15 * VB, LE);
    FloatVector s8x0 = FloatVector.fromMemorySegment(F, c, c0 + 16 * VB, LE);
    FloatVector s8x1 = FloatVector.fromMemorySegment(F, c, c0 + 17 * VB, LE);
    FloatVector s9x0 = FloatVector.fromMemorySegment(F, c, c0 + 18 * VB, LE);
    FloatVector s9x1 = FloatVector.fromMemorySegment(F, c, c0 + 19 * VB, LE);
    FloatVector s10x0 = FloatVector.fromMemorySegment(F, c, c0 + 20 * VB, LE);
    FloatVector s10x1 = FloatVector.fromMemorySegment(F, c, c0 + 21 * VB, LE);
    FloatVector s11x0 = FloatVector.fromMemorySegment(F, c, c0 + 22 * VB, LE);
    FloatVector s11x1 = FloatVector.fromMemorySegment(F, c, c0 + 23 * VB, LE);
    for (int i = 0; i < k; i += 2) {
      long q = x0 + i * (2 * VB);
      long p = w0 + 4L * i;
      seen ^= (i & 2) == 0 ? nextA.get(J, a0 + i * step) : nextB.get(J, b0 + i * step);
      FloatVector x0v0 = FloatVector.fromMemorySegment(F, x, q, LE);
      FloatVector x0v1 = FloatVector.fromMemorySegment(F, x, q + VB, LE);
      FloatVector b0r0 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p));
      s0x0 = x0v0.fma(b0r0, s0x0);
      s0x1 = x0v1.fma(b0r0, s0x1);
      FloatVector b0r1 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + WS));
      s1x0 = x0v0.fma(b0r1, s1x0);
      s1x1 = x0v1.fma(b0r1, s1x1);
      FloatVector b0r2 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 2 * WS));
      s2x0 = x0v0.fma(b0r2, s2x0);
      s2x1 = x0v1.fma(b0r2, s2x1);
      FloatVector b0r3 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 3 * WS));
      s3x0 = x0v0.fma(b0r3, s3x0);
      s3x1 = x0v1.fma(b0r3, s3x1);
      FloatVector b0r4 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4 * WS));
      s4x0 = x0v0.fma(b0r4, s4x0);
      s4x1 = x0v1.fma(b0r4, s4x1);
      FloatVector b0r5 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 5 * WS));
      s5x0 = x0v0.fma(b0r5, s5x0);
      s5x1 = x0v1.fma(b0r5, s5x1);
      FloatVector b0r6 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 6 * WS));
      s6x0 = x0v0.fma(b0r6, s6x0);
      s6x1 = x0v1.fma(b0r6, s6x1);
      FloatVector b0r7 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 7 * WS));
      s7x0 = x0v0.fma(b0r7, s7x0);
      s7x1 = x0v1.fma(b0r7, s7x1);
      FloatVector b0r8 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 8 * WS));
      s8x0 = x0v0.fma(b0r8, s8x0);
      s8x1 = x0v1.fma(b0r8, s8x1);
      FloatVector b0r9 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 9 * WS));
      s9x0 = x0v0.fma(b0r9, s9x0);
      s9x1 = x0v1.fma(b0r9, s9x1);
      FloatVector b0r10 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 10 * WS));
      s10x0 = x0v0.fma(b0r10, s10x0);
      s10x1 = x0v1.fma(b0r10, s10x1);
      FloatVector b0r11 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 11 * WS));
      s11x0 = x0v0.fma(b0r11, s11x0);
      s11x1 = x0v1.fma(b0r11, s11x1);
      FloatVector x1v0 = FloatVector.fromMemorySegment(F, x, q + 2 * VB, LE);
      FloatVector x1v1 = FloatVector.fromMemorySegment(F, x, q + 3 * VB, LE);
      FloatVector b1r0 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4));
      s0x0 = x1v0.fma(b1r0, s0x0);
      s0x1 = x1v1.fma(b1r0, s0x1);
      FloatVector b1r1 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + WS + 4));
      s1x0 = x1v0.fma(b1r1, s1x0);
      s1x1 = x1v1.fma(b1r1, s1x1);
      FloatVector b1r2 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 2 * WS + 4));
      s2x0 = x1v0.fma(b1r2, s2x0);
      s2x1 = x1v1.fma(b1r2, s2x1);
      FloatVector b1r3 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 3 * WS + 4));
      s3x0 = x1v0.fma(b1r3, s3x0);
      s3x1 = x1v1.fma(b1r3, s3x1);
      FloatVector b1r4 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4 * WS + 4));
      s4x0 = x1v0.fma(b1r4, s4x0);
      s4x1 = x1v1.fma(b1r4, s4x1);
      FloatVector b1r5 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 5 * WS + 4));
      s5x0 = x1v0.fma(b1r5, s5x0);
      s5x1 = x1v1.fma(b1r5, s5x1);
      FloatVector b1r6 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 6 * WS + 4));
      s6x0 = x1v0.fma(b1r6, s6x0);
      s6x1 = x1v1.fma(b1r6, s6x1);
      FloatVector b1r7 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 7 * WS + 4));
      s7x0 = x1v0.fma(b1r7, s7x0);
      s7x1 = x1v1.fma(b1r7, s7x1);
      FloatVector b1r8 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 8 * WS + 4));
      s8x0 = x1v0.fma(b1r8, s8x0);
      s8x1 = x1v1.fma(b1r8, s8x1);
      FloatVector b1r9 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 9 * WS + 4));
      s9x0 = x1v0.fma(b1r9, s9x0);
      s9x1 = x1v1.fma(b1r9, s9x1);
      FloatVector b1r10 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 10 * WS + 4));
      s10x0 = x1v0.fma(b1r10, s10x0);
      s10x1 = x1v1.fma(b1r10, s10x1);
      FloatVector b1r11 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 11 * WS + 4));
      s11x0 = x1v0.fma(b1r11, s11x0);
      s11x1 = x1v1.fma(b1r11, s11x1);
    }
    s0x0.intoMemorySegment(c, c0, LE);
    s0x1.intoMemorySegment(c, c0 + VB, LE);
    s1x0.intoMemorySegment(c, c0 + 2 * VB, LE);
    s1x1.intoMemorySegment(c, c0 + 3 * VB, LE);
    s2x0.intoMemorySegment(c, c0 + 4 * VB, LE);
    s2x1.intoMemorySegment(c, c0 + 5 * VB, LE);
    s3x0.intoMemorySegment(c, c0 + 6 * VB, LE);
    s3x1.intoMemorySegment(c, c0 + 7 * VB, LE);
    s4x0.intoMemorySegment(c, c0 + 8 * VB, LE);
    s4x1.intoMemorySegment(c, c0 + 9 * VB, LE);
    s5x0.intoMemorySegment(c, c0 + 10 * VB, LE);
    s5x1.intoMemorySegment(c, c0 + 11 * VB, LE);
    s6x0.intoMemorySegment(c, c0 + 12 * VB, LE);
    s6x1.intoMemorySegment(c, c0 + 13 * VB, LE);
    s7x0.intoMemorySegment(c, c0 + 14 * VB, LE);
    s7x1.intoMemorySegment(c, c0 + 15 * VB, LE);
    s8x0.intoMemorySegment(c, c0 + 16 * VB, LE);
    s8x1.intoMemorySegment(c, c0 + 17 * VB, LE);
    s9x0.intoMemorySegment(c, c0 + 18 * VB, LE);
    s9x1.intoMemorySegment(c, c0 + 19 * VB, LE);
    s10x0.intoMemorySegment(c, c0 + 20 * VB, LE);
    s10x1.intoMemorySegment(c, c0 + 21 * VB, LE);
    s11x0.intoMemorySegment(c, c0 + 22 * VB, LE);
    s11x1.intoMemorySegment(c, c0 + 23 * VB, LE);
    return seen;
  }

  private static long rows12x1(
      MemorySegment w,
      long w0,
      MemorySegment x,
      long x0,
      int k,
      MemorySegment c,
      long c0,
      MemorySegment nextA,
      long a0,
      MemorySegment nextB,
      long b0,
      long step) {
    long seen = 0;
    FloatVector s0x0 = FloatVector.fromMemorySegment(F, c, c0, LE);
    FloatVector s1x0 = FloatVector.fromMemorySegment(F, c, c0 + VB, LE);
    FloatVector s2x0 = FloatVector.fromMemorySegment(F, c, c0 + 2 * VB, LE);
    FloatVector s3x0 = FloatVector.fromMemorySegment(F, c, c0 + 3 * VB, LE);
    FloatVector s4x0 = FloatVector.fromMemorySegment(F, c, c0 + 4 * VB, LE);
    FloatVector s5x0 = FloatVector.fromMemorySegment(F, c, c0 + 5 * VB, LE);
    FloatVector s6x0 = FloatVector.fromMemorySegment(F, c, c0 + 6 * VB, LE);
    FloatVector s7x0 = FloatVector.fromMemorySegment(F, c, c0 + 7 * VB, LE);
    FloatVector s8x0 = FloatVector.fromMemorySegment(F, c, c0 + 8 * VB, LE);
    FloatVector s9x0 = FloatVector.fromMemorySegment(F, c, c0 + 9 * VB, LE);
    FloatVector s10x0 = FloatVector.fromMemorySegment(F, c, c0 + 10 * VB, LE);
    FloatVector s11x0 = FloatVector.fromMemorySegment(F, c, c0 + 11 * VB, LE);
    for (int i = 0; i < k; i += 2) {
      long q = x0 + i * VB;
      long p = w0 + 4L * i;
      seen ^= (i & 2) == 0 ? nextA.get(J, a0 + i * step) : nextB.get(J, b0 + i * step);
      FloatVector x0v0 = FloatVector.fromMemorySegment(F, x, q, LE);
      FloatVector b0r0 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p));
      s0x0 = x0v0.fma(b0r0, s0x0);
      FloatVector b0r1 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + WS));
      s1x0 = x0v0.fma(b0r1, s1x0);
      FloatVector b0r2 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 2 * WS));
      s2x0 = x0v0.fma(b0r2, s2x0);
      FloatVector b0r3 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 3 * WS));
      s3x0 = x0v0.fma(b0r3, s3x0);
      FloatVector b0r4 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4 * WS));
      s4x0 = x0v0.fma(b0r4, s4x0);
      FloatVector b0r5 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 5 * WS));
      s5x0 = x0v0.fma(b0r5, s5x0);
      FloatVector b0r6 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 6 * WS));
      s6x0 = x0v0.fma(b0r6, s6x0);
      FloatVector b0r7 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 7 * WS));
      s7x0 = x0v0.fma(b0r7, s7x0);
      FloatVector b0r8 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 8 * WS));
      s8x0 = x0v0.fma(b0r8, s8x0);
      FloatVector b0r9 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 9 * WS));
      s9x0 = x0v0.fma(b0r9, s9x0);
      FloatVector b0r10 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 10 * WS));
      s10x0 = x0v0.fma(b0r10, s10x0);
      FloatVector b0r11 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 11 * WS));
      s11x0 = x0v0.fma(b0r11, s11x0);
      FloatVector x1v0 = FloatVector.fromMemorySegment(F, x, q + VB, LE);
      FloatVector b1r0 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4));
      s0x0 = x1v0.fma(b1r0, s0x0);
      FloatVector b1r1 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + WS + 4));
      s1x0 = x1v0.fma(b1r1, s1x0);
      FloatVector b1r2 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 2 * WS + 4));
      s2x0 = x1v0.fma(b1r2, s2x0);
      FloatVector b1r3 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 3 * WS + 4));
      s3x0 = x1v0.fma(b1r3, s3x0);
      FloatVector b1r4 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4 * WS + 4));
      s4x0 = x1v0.fma(b1r4, s4x0);
      FloatVector b1r5 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 5 * WS + 4));
      s5x0 = x1v0.fma(b1r5, s5x0);
      FloatVector b1r6 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 6 * WS + 4));
      s6x0 = x1v0.fma(b1r6, s6x0);
      FloatVector b1r7 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 7 * WS + 4));
      s7x0 = x1v0.fma(b1r7, s7x0);
      FloatVector b1r8 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 8 * WS + 4));
      s8x0 = x1v0.fma(b1r8, s8x0);
      FloatVector b1r9 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 9 * WS + 4));
      s9x0 = x1v0.fma(b1r9, s9x0);
      FloatVector b1r10 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 10 * WS + 4));
      s10x0 = x1v0.fma(b1r10, s10x0);
      FloatVector b1r11 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 11 * WS + 4));
      s11x0 = x1v0.fma(b1r11, s11x0);
    }
    s0x0.intoMemorySegment(c, c0, LE);
    s1x0.intoMemorySegment(c, c0 + VB, LE);
    s2x0.intoMemorySegment(c, c0 + 2 * VB, LE);
    s3x0.intoMemorySegment(c, c0 + 3 * VB, LE);
    s4x0.intoMemorySegment(c, c0 + 4 * VB, LE);
    s5x0.intoMemorySegment(c, c0 + 5 * VB, LE);
    s6x0.intoMemorySegment(c, c0 + 6 * VB, LE);
    s7x0.intoMemorySegment(c, c0 + 7 * VB, LE);
    s8x0.intoMemorySegment(c, c0 + 8 * VB, LE);
    s9x0.intoMemorySegment(c, c0 + 9 * VB, LE);
    s10x0.intoMemorySegment(c, c0 + 10 * VB, LE);
    s11x0.intoMemorySegment(c, c0 + 11 * VB, LE);
    return seen;
  }

  private static long rows6x2(
      MemorySegment w,
      long w0,
      MemorySegment x,
      long x0,
      int k,
      MemorySegment c,
      long c0,
      MemorySegment nextA,
      long a0,
      MemorySegment nextB,
      long b0,
      long step) {
    long seen = 0;
    FloatVector s0x0 = FloatVector.fromMemorySegment(F, c, c0, LE);
    FloatVector s0x1 = FloatVector.fromMemorySegment(F, c, c0 + VB, LE);
    FloatVector s1x0 = FloatVector.fromMemorySegment(F, c, c0 + 2 * VB, LE);
    FloatVector s1x1 = FloatVector.fromMemorySegment(F, c, c0 + 3 * VB, LE);
    FloatVector s2x0 = FloatVector.fromMemorySegment(F, c, c0 + 4 * VB, LE);
    FloatVector s2x1 = FloatVector.fromMemorySegment(F, c, c0 + 5 * VB, LE);
    FloatVector s3x0 = FloatVector.fromMemorySegment(F, c, c0 + 6 * VB, LE);
    FloatVector s3x1 = FloatVector.fromMemorySegment(F, c, c0 + 7 * VB, LE);
    FloatVector s4x0 = FloatVector.fromMemorySegment(F, c, c0 + 8 * VB, LE);
    FloatVector s4x1 = FloatVector.fromMemorySegment(F, c, c0 + 9 * VB, LE);
    FloatVector s5x0 = FloatVector.fromMemorySegment(F, c, c0 + 10 * VB, LE);
    FloatVector s5x1 = FloatVector.fromMemorySegment(F, c, c0 + 11 * VB, LE);
    for (int i = 0; i < k; i += 2) {
      long q = x0 + i * (2 * VB);
      long p = w0 + 4L * i;
      seen ^= (i & 2) == 0 ? nextA.get(J, a0 + i * step) : nextB.get(J, b0 + i * step);
      FloatVector x0v0 = FloatVector.fromMemorySegment(F, x, q, LE);
      FloatVector x0v1 = FloatVector.fromMemorySegment(F, x, q + VB, LE);
      FloatVector b0r0 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p));
      s0x0 = x0v0.fma(b0r0, s0x0);
      s0x1 = x0v1.fma(b0r0, s0x1);
      FloatVector b0r1 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + WS));
      s1x0 = x0v0.fma(b0r1, s1x0);
      s1x1 = x0v1.fma(b0r1, s1x1);
      FloatVector b0r2 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 2 * WS));
      s2x0 = x0v0.fma(b0r2, s2x0);
      s2x1 = x0v1.fma(b0r2, s2x1);
      FloatVector b0r3 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 3 * WS));
      s3x0 = x0v0.fma(b0r3, s3x0);
      s3x1 = x0v1.fma(b0r3, s3x1);
      FloatVector b0r4 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4 * WS));
      s4x0 = x0v0.fma(b0r4, s4x0);
      s4x1 = x0v1.fma(b0r4, s4x1);
      FloatVector b0r5 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 5 * WS));
      s5x0 = x0v0.fma(b0r5, s5x0);
      s5x1 = x0v1.fma(b0r5, s5x1);
      FloatVector x1v0 = FloatVector.fromMemorySegment(F, x, q + 2 * VB, LE);
      FloatVector x1v1 = FloatVector.fromMemorySegment(F, x, q + 3 * VB, LE);
      FloatVector b1r0 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4));
      s0x0 = x1v0.fma(b1r0, s0x0);
      s0x1 = x1v1.fma(b1r0, s0x1);
      FloatVector b1r1 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + WS + 4));
      s1x0 = x1v0.fma(b1r1, s1x0);
      s1x1 = x1v1.fma(b1r1, s1x1);
      FloatVector b1r2 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 2 * WS + 4));
      s2x0 = x1v0.fma(b1r2, s2x0);
      s2x1 = x1v1.fma(b1r2, s2x1);
      FloatVector b1r3 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 3 * WS + 4));
      s3x0 = x1v0.fma(b1r3, s3x0);
      s3x1 = x1v1.fma(b1r3, s3x1);
      FloatVector b1r4 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 4 * WS + 4));
      s4x0 = x1v0.fma(b1r4, s4x0);
      s4x1 = x1v1.fma(b1r4, s4x1);
      FloatVector b1r5 = FloatVector.broadcast(F, w.get(ScalarKernels.F32, p + 5 * WS + 4));
      s5x0 = x1v0.fma(b1r5, s5x0);
      s5x1 = x1v1.fma(b1r5, s5x1);
    }
    s0x0.intoMemorySegment(c, c0, LE);
    s0x1.intoMemorySegment(c, c0 + VB, LE);
    s1x0.intoMemorySegment(c, c0 + 2 * VB, LE);
    s1x1.intoMemorySegment(c, c0 + 3 * VB, LE);
    s2x0.intoMemorySegment(c, c0 + 4 * VB, LE);
    s2x1.intoMemorySegment(c, c0 + 5 * VB, LE);
    s3x0.intoMemorySegment(c, c0 + 6 * VB, LE);
    s3x1.intoMemorySegment(c, c0 + 7 * VB, LE);
    s4x0.intoMemorySegment(c, c0 + 8 * VB, LE);
    s4x1.intoMemorySegment(c, c0 + 9 * VB, LE);
    s5x0.intoMemorySegment(c, c0 + 10 * VB, LE);
    s5x1.intoMemorySegment(c, c0 + 11 * VB, LE);
    return seen;
  }
}
