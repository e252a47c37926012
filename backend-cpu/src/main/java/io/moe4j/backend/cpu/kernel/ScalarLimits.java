package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** In plain Java; the compiler may still vectorise the reads. */
final class ScalarLimits implements Limits {
  private static final int CHAINS = 8;

  @Override
  public double read(MemorySegment s, long offset, long length) {
    long a = 0;
    long b = 0;
    for (long i = offset; i + 16 <= offset + length; i += 16) {
      a ^= s.get(ValueLayout.JAVA_LONG_UNALIGNED, i);
      b ^= s.get(ValueLayout.JAVA_LONG_UNALIGNED, i + 8);
    }
    return a ^ b;
  }

  @Override
  public double fma(int rounds) {
    float x = 0.999f;
    float y = 1e-7f;
    float a = x;
    float b = x;
    float c = x;
    float d = x;
    float e = x;
    float f = x;
    float g = x;
    float h = x;
    for (int n = 0; n < rounds; n++) {
      a = a * x + y;
      b = b * x + y;
      c = c * x + y;
      d = d * x + y;
      e = e * x + y;
      f = f * x + y;
      g = g * x + y;
      h = h * x + y;
    }
    return a + b + c + d + e + f + g + h;
  }

  @Override
  public double flopsPerRound() {
    return 2.0 * CHAINS;
  }
}
