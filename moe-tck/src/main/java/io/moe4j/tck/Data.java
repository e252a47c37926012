package io.moe4j.tck;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.SplittableRandom;

/** Seeded host tensors, in native memory as checkpoints and engines have them. */
final class Data {
  private final SplittableRandom random;

  Data(long seed) {
    this.random = new SplittableRandom(seed);
  }

  static Tensor empty(DType dtype, long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    return Tensor.of(dtype, Arena.ofAuto().allocate(dtype.byteSize(n), 64), shape);
  }

  /** {@return normal values of some standard deviation, rounded to {@code dtype}} */
  Tensor normal(DType dtype, double deviation, long... shape) {
    Tensor t = empty(dtype, shape);
    Tensor flat = t.reshape(t.elementCount());
    for (long i = 0; i < flat.size(0); i++) {
      flat.set(deviation * random.nextGaussian(), i);
    }
    return t;
  }

  /** {@return a tensor of random bytes in a range, ends included} */
  Tensor bytes(DType dtype, int least, int most, long... shape) {
    Tensor t = empty(dtype, shape);
    MemorySegment segment = t.segment();
    for (long i = 0; i < segment.byteSize(); i++) {
      segment.set(ValueLayout.JAVA_BYTE, i, (byte) random.nextInt(least, most + 1));
    }
    return t;
  }

  double gaussian() {
    return random.nextGaussian();
  }

  double uniform() {
    return random.nextDouble();
  }

  int below(int bound) {
    return random.nextInt(bound);
  }
}
