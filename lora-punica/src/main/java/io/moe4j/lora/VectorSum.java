package io.moe4j.lora;

import jdk.incubator.vector.FloatVector;
import jdk.incubator.vector.VectorShuffle;
import jdk.incubator.vector.VectorSpecies;

/**
 * The sum of a vector's lanes, always in the same order. {@code reduceLanes(ADD)} may add in any:
 * interpreted it goes from lane to lane, compiled it folds, so one input gives two results in the
 * life of one process.
 */
final class VectorSum {
  private static final VectorSpecies<Float> S = FloatVector.SPECIES_PREFERRED;
  private static final int W = S.length();
  private static final VectorShuffle<Float> BY_8 = rotation(8);
  private static final VectorShuffle<Float> BY_4 = rotation(4);
  private static final VectorShuffle<Float> BY_2 = rotation(2);
  private static final VectorShuffle<Float> BY_1 = rotation(1);

  private VectorSum() {}

  private static VectorShuffle<Float> rotation(int lanes) {
    return VectorShuffle.fromOp(S, i -> (i + lanes) % W);
  }

  /** Folds halves onto each other. */
  static float sum(FloatVector v) {
    if (W > 16) {
      return ordered(v);
    }
    FloatVector s = v;
    if (W > 8) {
      s = s.add(s.rearrange(BY_8));
    }
    if (W > 4) {
      s = s.add(s.rearrange(BY_4));
    }
    if (W > 2) {
      s = s.add(s.rearrange(BY_2));
    }
    return s.add(s.rearrange(BY_1)).lane(0);
  }

  /** For vectors wider than 512 bits, of which there may be some one day. */
  private static float ordered(FloatVector v) {
    float sum = 0;
    for (int i = 0; i < W; i++) {
      sum += v.lane(i);
    }
    return sum;
  }
}
