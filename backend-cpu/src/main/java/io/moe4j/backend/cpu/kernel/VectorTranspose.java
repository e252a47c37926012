package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorShuffle;
import jdk.incubator.vector.VectorSpecies;

/**
 * Transposes square blocks of as many rows and columns as a vector has lanes. In log2(lanes) steps,
 * two of them at a time: a step of distance {@code d} takes rows {@code i} and {@code i + d} and
 * swaps the upper lanes of each 2d in the one with the lower lanes in the other (Eklundh 1972).
 */
final class VectorTranspose {
  private static final VectorSpecies<Float> F = VectorWidth.F;
  private static final int VL = F.length();
  private static final ByteOrder LE = ByteOrder.LITTLE_ENDIAN;

  private static final VectorShuffle<Float> UP_1 = rotation(VL - 1);
  private static final VectorShuffle<Float> UP_2 = rotation(VL - 2);
  private static final VectorShuffle<Float> UP_4 = rotation(VL - 4);
  private static final VectorShuffle<Float> UP_8 = rotation(VL - 8);
  private static final VectorShuffle<Float> DOWN_1 = rotation(1);
  private static final VectorShuffle<Float> DOWN_2 = rotation(2);
  private static final VectorShuffle<Float> DOWN_4 = rotation(4);
  private static final VectorShuffle<Float> DOWN_8 = rotation(8);
  private static final VectorMask<Float> HIGH_1 = upper(1);
  private static final VectorMask<Float> HIGH_2 = upper(2);
  private static final VectorMask<Float> HIGH_4 = upper(4);
  private static final VectorMask<Float> HIGH_8 = upper(8);

  private VectorTranspose() {}

  private static VectorShuffle<Float> rotation(int lanes) {
    return VectorShuffle.fromOp(F, i -> Math.floorMod(i + lanes, VL));
  }

  private static VectorMask<Float> upper(int distance) {
    boolean[] on = new boolean[VL];
    for (int i = 0; i < VL; i++) {
      on[i] = (i & distance) != 0;
    }
    return VectorMask.fromArray(F, on, 0);
  }

  /** {@code dst[j][i] = src[i][j]}; the block is transposed in place. */
  static void block(
      float[] src,
      int at,
      int stride,
      MemorySegment dst,
      long to,
      long dstStride,
      int rows,
      int columns) {
    if (VL == 16 && rows == VL && columns >= VL && dst.getClass() == SegmentClass.NATIVE) {
      steps1(src, at, stride);
      steps4(src, at, stride, dst, to, dstStride, 0, 6);
      return;
    }
    turn(src, at, stride);
    if (columns >= VL && dst.getClass() == SegmentClass.NATIVE) {
      for (int j = 0; j < rows; j++) {
        FloatVector.fromArray(F, src, at + j * stride)
            .intoMemorySegment(dst, to + j * dstStride, LE);
      }
      return;
    }
    for (int j = 0; j < rows; j++) {
      for (int i = 0; i < columns; i++) {
        dst.set(ScalarKernels.F32, to + j * dstStride + 4L * i, src[at + j * stride + i]);
      }
    }
  }

  /** {@code dst[row(first + j)][i] = src[i][j]}. */
  static void block(
      MemorySegment src,
      long srcOffset,
      long srcStride,
      float[] turned,
      MemorySegment dst,
      long to,
      long dstStride,
      int first,
      int jump,
      int rows) {
    if (VL < 4 || src.getClass() != SegmentClass.NATIVE || dst.getClass() != SegmentClass.NATIVE) {
      for (int i = 0; i < VL; i++) {
        MemorySegment.copy(src, ScalarKernels.F32, srcOffset + i * srcStride, turned, i * VL, VL);
      }
      turn(turned, 0, VL);
      for (int j = 0; j < rows; j++) {
        long o = to + row(first + j, jump) * dstStride;
        MemorySegment.copy(turned, j * VL, dst, ScalarKernels.F32, o, VL);
      }
      return;
    }
    steps1(src, srcOffset, srcStride, turned);
    if (VL == 16 && rows == VL) {
      steps4(turned, 0, VL, dst, to, dstStride, first, jump);
      return;
    }
    if (VL == 8) {
      step4(turned, 0, VL);
    } else if (VL == 16) {
      steps4(turned, 0, VL);
    }
    for (int j = 0; j < rows; j++) {
      FloatVector.fromArray(F, turned, j * VL)
          .intoMemorySegment(dst, to + row(first + j, jump) * dstStride, LE);
    }
  }

  /** Where a row stands among rows that come by six. */
  private static long row(int r, int jump) {
    return r / 6 * (long) jump + r % 6;
  }

  private static void turn(float[] m, int at, int stride) {
    steps1(m, at, stride);
    if (VL == 8) {
      step4(m, at, stride);
    } else if (VL == 16) {
      steps4(m, at, stride);
    }
  }

  /** Distances 1 and 2: four rows in registers, read and written once for both. */
  private static void steps1(float[] m, int at, int stride) {
    for (int n = 0; n < VL / 4; n++) {
      int i = at + 4 * n * stride;
      int j = i + stride;
      int k = j + stride;
      int l = k + stride;
      FloatVector a = FloatVector.fromArray(F, m, i);
      FloatVector b = FloatVector.fromArray(F, m, j);
      FloatVector c = FloatVector.fromArray(F, m, k);
      FloatVector d = FloatVector.fromArray(F, m, l);
      FloatVector p = a.blend(b.rearrange(UP_1), HIGH_1);
      FloatVector q = a.rearrange(DOWN_1).blend(b, HIGH_1);
      FloatVector r = c.blend(d.rearrange(UP_1), HIGH_1);
      FloatVector s = c.rearrange(DOWN_1).blend(d, HIGH_1);
      p.blend(r.rearrange(UP_2), HIGH_2).intoArray(m, i);
      q.blend(s.rearrange(UP_2), HIGH_2).intoArray(m, j);
      p.rearrange(DOWN_2).blend(r, HIGH_2).intoArray(m, k);
      q.rearrange(DOWN_2).blend(s, HIGH_2).intoArray(m, l);
    }
  }

  /** Distances 1 and 2, out of memory. */
  private static void steps1(MemorySegment src, long at, long stride, float[] m) {
    src = SegmentClass.known(src, SegmentClass.NATIVE);
    for (int n = 0; n < VL / 4; n++) {
      long i = at + 4L * n * stride;
      FloatVector a = FloatVector.fromMemorySegment(F, src, i, LE);
      FloatVector b = FloatVector.fromMemorySegment(F, src, i + stride, LE);
      FloatVector c = FloatVector.fromMemorySegment(F, src, i + 2 * stride, LE);
      FloatVector d = FloatVector.fromMemorySegment(F, src, i + 3 * stride, LE);
      FloatVector p = a.blend(b.rearrange(UP_1), HIGH_1);
      FloatVector q = a.rearrange(DOWN_1).blend(b, HIGH_1);
      FloatVector r = c.blend(d.rearrange(UP_1), HIGH_1);
      FloatVector s = c.rearrange(DOWN_1).blend(d, HIGH_1);
      int to = 4 * n * VL;
      p.blend(r.rearrange(UP_2), HIGH_2).intoArray(m, to);
      q.blend(s.rearrange(UP_2), HIGH_2).intoArray(m, to + VL);
      p.rearrange(DOWN_2).blend(r, HIGH_2).intoArray(m, to + 2 * VL);
      q.rearrange(DOWN_2).blend(s, HIGH_2).intoArray(m, to + 3 * VL);
    }
  }

  /** Distances 4 and 8, into memory. */
  private static void steps4(
      float[] m,
      int at,
      int stride,
      MemorySegment dst,
      long to,
      long dstStride,
      int first,
      int jump) {
    dst = SegmentClass.known(dst, SegmentClass.NATIVE);
    for (int n = 0; n < 4; n++) {
      int i = at + n * stride;
      FloatVector a = FloatVector.fromArray(F, m, i);
      FloatVector b = FloatVector.fromArray(F, m, i + 4 * stride);
      FloatVector c = FloatVector.fromArray(F, m, i + 8 * stride);
      FloatVector d = FloatVector.fromArray(F, m, i + 12 * stride);
      FloatVector p = a.blend(b.rearrange(UP_4), HIGH_4);
      FloatVector q = a.rearrange(DOWN_4).blend(b, HIGH_4);
      FloatVector r = c.blend(d.rearrange(UP_4), HIGH_4);
      FloatVector s = c.rearrange(DOWN_4).blend(d, HIGH_4);
      int j = first + n;
      p.blend(r.rearrange(UP_8), HIGH_8).intoMemorySegment(dst, to + row(j, jump) * dstStride, LE);
      q.blend(s.rearrange(UP_8), HIGH_8)
          .intoMemorySegment(dst, to + row(j + 4, jump) * dstStride, LE);
      p.rearrange(DOWN_8)
          .blend(r, HIGH_8)
          .intoMemorySegment(dst, to + row(j + 8, jump) * dstStride, LE);
      q.rearrange(DOWN_8)
          .blend(s, HIGH_8)
          .intoMemorySegment(dst, to + row(j + 12, jump) * dstStride, LE);
    }
  }

  /** Distances 4 and 8. */
  private static void steps4(float[] m, int at, int stride) {
    for (int n = 0; n < 4; n++) {
      int i = at + n * stride;
      int j = i + 4 * stride;
      int k = j + 4 * stride;
      int l = k + 4 * stride;
      FloatVector a = FloatVector.fromArray(F, m, i);
      FloatVector b = FloatVector.fromArray(F, m, j);
      FloatVector c = FloatVector.fromArray(F, m, k);
      FloatVector d = FloatVector.fromArray(F, m, l);
      FloatVector p = a.blend(b.rearrange(UP_4), HIGH_4);
      FloatVector q = a.rearrange(DOWN_4).blend(b, HIGH_4);
      FloatVector r = c.blend(d.rearrange(UP_4), HIGH_4);
      FloatVector s = c.rearrange(DOWN_4).blend(d, HIGH_4);
      p.blend(r.rearrange(UP_8), HIGH_8).intoArray(m, i);
      q.blend(s.rearrange(UP_8), HIGH_8).intoArray(m, j);
      p.rearrange(DOWN_8).blend(r, HIGH_8).intoArray(m, k);
      q.rearrange(DOWN_8).blend(s, HIGH_8).intoArray(m, l);
    }
  }

  /** Distance 4, where it is the last. */
  private static void step4(float[] m, int at, int stride) {
    for (int n = 0; n < 4; n++) {
      int i = at + n * stride;
      int j = i + 4 * stride;
      FloatVector a = FloatVector.fromArray(F, m, i);
      FloatVector b = FloatVector.fromArray(F, m, j);
      a.blend(b.rearrange(UP_4), HIGH_4).intoArray(m, i);
      a.rearrange(DOWN_4).blend(b, HIGH_4).intoArray(m, j);
    }
  }
}
