package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorShuffle;
import jdk.incubator.vector.VectorSpecies;

/**
 * Square blocks turned over, as many rows and columns as a vector has lanes. In log2(lanes) steps:
 * a step of distance {@code d} takes rows {@code i} and {@code i + d} and swaps the upper lanes of
 * each 2d in the one with the lower lanes in the other (Eklundh 1972).
 */
final class VectorTranspose {
  private static final VectorSpecies<Float> F = FloatVector.SPECIES_PREFERRED;
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

  /** {@code dst[j][i] = src[i][j]}; the block is turned over where it stands. */
  static void block(
      float[] src,
      int at,
      int stride,
      MemorySegment dst,
      long to,
      long dstStride,
      int rows,
      int columns) {
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

  /** {@code dst[row(first + j)][i] += src[i][j]}. */
  static void blockAdd(
      MemorySegment src,
      long srcOffset,
      long srcStride,
      int tokens,
      float[] turned,
      float[] dst,
      int to,
      int dstStride,
      int first,
      int jump,
      int rows) {
    if (src.getClass() == SegmentClass.NATIVE) {
      for (int i = 0; i < tokens; i++) {
        FloatVector.fromMemorySegment(F, src, srcOffset + i * srcStride, LE)
            .intoArray(turned, i * VL);
      }
    } else {
      for (int i = 0; i < tokens; i++) {
        MemorySegment.copy(src, ScalarKernels.F32, srcOffset + i * srcStride, turned, i * VL, VL);
      }
    }
    for (int i = tokens; i < VL; i++) {
      FloatVector.zero(F).intoArray(turned, i * VL);
    }
    turn(turned, 0, VL);
    for (int j = 0; j < rows; j++) {
      int r = first + j;
      int o = to + (r / 6 * jump + r % 6) * dstStride;
      FloatVector.fromArray(F, turned, j * VL)
          .add(FloatVector.fromArray(F, dst, o))
          .intoArray(dst, o);
    }
  }

  private static void turn(float[] m, int at, int stride) {
    step1(m, at, stride);
    if (VL > 2) {
      step2(m, at, stride);
    }
    if (VL > 4) {
      step4(m, at, stride);
    }
    if (VL > 8) {
      step8(m, at, stride);
    }
  }

  private static void step1(float[] m, int at, int stride) {
    for (int i = 0; i < VL; i++) {
      if ((i & 1) == 0) {
        int a = at + i * stride;
        int b = a + 1 * stride;
        FloatVector upper = FloatVector.fromArray(F, m, a);
        FloatVector lower = FloatVector.fromArray(F, m, b);
        upper.blend(lower.rearrange(UP_1), HIGH_1).intoArray(m, a);
        upper.rearrange(DOWN_1).blend(lower, HIGH_1).intoArray(m, b);
      }
    }
  }

  private static void step2(float[] m, int at, int stride) {
    for (int i = 0; i < VL; i++) {
      if ((i & 2) == 0) {
        int a = at + i * stride;
        int b = a + 2 * stride;
        FloatVector upper = FloatVector.fromArray(F, m, a);
        FloatVector lower = FloatVector.fromArray(F, m, b);
        upper.blend(lower.rearrange(UP_2), HIGH_2).intoArray(m, a);
        upper.rearrange(DOWN_2).blend(lower, HIGH_2).intoArray(m, b);
      }
    }
  }

  private static void step4(float[] m, int at, int stride) {
    for (int i = 0; i < VL; i++) {
      if ((i & 4) == 0) {
        int a = at + i * stride;
        int b = a + 4 * stride;
        FloatVector upper = FloatVector.fromArray(F, m, a);
        FloatVector lower = FloatVector.fromArray(F, m, b);
        upper.blend(lower.rearrange(UP_4), HIGH_4).intoArray(m, a);
        upper.rearrange(DOWN_4).blend(lower, HIGH_4).intoArray(m, b);
      }
    }
  }

  private static void step8(float[] m, int at, int stride) {
    for (int i = 0; i < VL; i++) {
      if ((i & 8) == 0) {
        int a = at + i * stride;
        int b = a + 8 * stride;
        FloatVector upper = FloatVector.fromArray(F, m, a);
        FloatVector lower = FloatVector.fromArray(F, m, b);
        upper.blend(lower.rearrange(UP_8), HIGH_8).intoArray(m, a);
        upper.rearrange(DOWN_8).blend(lower, HIGH_8).intoArray(m, b);
      }
    }
  }
}
