package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.nio.ByteOrder;
import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorMask;
import jdk.incubator.vector.VectorShuffle;
import jdk.incubator.vector.VectorSpecies;

/**
 * The sum of a vector's lanes, always in the same order. {@code reduceLanes(ADD)} may add in any:
 * interpreted it goes from lane to lane, compiled it folds, so one input gives two results in the
 * life of one process.
 */
final class Lanes {
  private static final VectorSpecies<Float> S = VectorWidth.F;
  private static final VectorSpecies<Float> FOUR = FloatVector.SPECIES_128;
  private static final int W = S.length();
  private static final VectorShuffle<Float> BY_8 = rotation(8);
  private static final VectorShuffle<Float> BY_4 = rotation(4);
  private static final VectorShuffle<Float> BY_2 = rotation(2);
  private static final VectorShuffle<Float> BY_1 = rotation(1);

  private static final VectorShuffle<Float> BACK_2 = rotation(W - 2);
  private static final VectorShuffle<Float> BACK_1 = rotation(W - 1);
  private static final VectorMask<Float> UPPER_2 = upper(2);
  private static final VectorMask<Float> UPPER_1 = upper(1);

  private Lanes() {}

  private static VectorShuffle<Float> rotation(int lanes) {
    return VectorShuffle.fromOp(S, i -> Math.floorMod(i + lanes, W));
  }

  private static VectorMask<Float> upper(int distance) {
    boolean[] on = new boolean[W];
    for (int i = 0; i < W; i++) {
      on[i] = (i & distance) != 0;
    }
    return VectorMask.fromArray(S, on, 0);
  }

  /**
   * The sums of four vectors, in lanes 0 to 3. Each step adds neighbours (then pairs of lanes) and
   * brings the results of two vectors together, as if the four were transposed and added up.
   */
  static FloatVector fold4(FloatVector a, FloatVector b, FloatVector c, FloatVector d) {
    FloatVector ab = a.blend(b.rearrange(BACK_1), UPPER_1).add(a.rearrange(BY_1).blend(b, UPPER_1));
    FloatVector cd = c.blend(d.rearrange(BACK_1), UPPER_1).add(c.rearrange(BY_1).blend(d, UPPER_1));
    FloatVector s =
        ab.blend(cd.rearrange(BACK_2), UPPER_2).add(ab.rearrange(BY_2).blend(cd, UPPER_2));
    if (W > 8) {
      s = s.add(s.rearrange(BY_8));
    }
    if (W > 4) {
      s = s.add(s.rearrange(BY_4));
    }
    return s;
  }

  /** Folds halves onto each other. */
  static float sum(FloatVector v) {
    FloatVector s = v;
    if (W > 8) {
      s = s.add(s.rearrange(BY_8));
    }
    if (W > 4) {
      s = s.add(s.rearrange(BY_4));
    }
    s = s.add(s.rearrange(BY_2));
    return s.add(s.rearrange(BY_1)).lane(0);
  }

  /**
   * Sums of some vectors in an array: {@code out[j][r]} = the lanes of vector {@code j * rows + r}.
   *
   * @param from holds the vectors
   * @param at where they begin
   * @param rows results side by side
   * @param tokens times that many
   * @param out F32
   * @param outOffset bytes
   * @param outStride bytes from one token to the next
   * @param add to what is there
   */
  static void fold(
      float[] from,
      int at,
      int rows,
      int tokens,
      MemorySegment out,
      long outOffset,
      long outStride,
      boolean add) {
    if (rows == 4 && out.getClass() == SegmentClass.NATIVE) {
      fold4(from, at, tokens, out, outOffset, outStride, add);
      return;
    }
    for (int j = 0; j < tokens; j++) {
      for (int r = 0; r < rows; r++) {
        float sum = sum(FloatVector.fromArray(S, from, at + (j * rows + r) * W));
        long o = outOffset + j * outStride + 4L * r;
        out.set(ScalarKernels.F32, o, add ? out.get(ScalarKernels.F32, o) + sum : sum);
      }
    }
  }

  private static void fold4(
      float[] from,
      int at,
      int tokens,
      MemorySegment out,
      long outOffset,
      long outStride,
      boolean add) {
    out = SegmentClass.known(out, SegmentClass.NATIVE);
    for (int j = 0; j < tokens; j++) {
      int i = at + 4 * j * W;
      long o = outOffset + j * outStride;
      FloatVector sums =
          fold4(
              FloatVector.fromArray(S, from, i),
              FloatVector.fromArray(S, from, i + W),
              FloatVector.fromArray(S, from, i + 2 * W),
              FloatVector.fromArray(S, from, i + 3 * W));
      FloatVector v = (FloatVector) sums.reinterpretShape(FOUR, 0);
      if (add) {
        v = v.add(FloatVector.fromMemorySegment(FOUR, out, o, ByteOrder.LITTLE_ENDIAN));
      }
      v.intoMemorySegment(out, o, ByteOrder.LITTLE_ENDIAN);
    }
  }
}
