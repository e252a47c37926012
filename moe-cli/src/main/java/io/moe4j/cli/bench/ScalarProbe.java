package io.moe4j.cli.bench;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** Plain Java, for a JVM that was started without the Vector API: what such a JVM can reach. */
final class ScalarProbe implements HostProbe {
  private static final ValueLayout.OfLong LONG = ValueLayout.JAVA_LONG_UNALIGNED;
  private static final int CHAINS = 8;

  @Override
  public String name() {
    return "scalar (started without jdk.incubator.vector)";
  }

  @Override
  public int flopsPerIteration() {
    return 2 * CHAINS;
  }

  @Override
  public long read(MemorySegment memory) {
    long a = 0;
    long b = 0;
    long c = 0;
    long d = 0;
    long end = memory.byteSize() - 32;
    for (long i = 0; i <= end; i += 32) {
      a += memory.get(LONG, i);
      b += memory.get(LONG, i + 8);
      c += memory.get(LONG, i + 16);
      d += memory.get(LONG, i + 24);
    }
    return a + b + c + d;
  }

  @Override
  public float multiplyAdd(long iterations) {
    float a = 1;
    float b = 1;
    float c = 1;
    float d = 1;
    float e = 1;
    float f = 1;
    float g = 1;
    float h = 1;
    for (long i = 0; i < iterations; i++) {
      a = Math.fma(a, 0.999f, 0.001f);
      b = Math.fma(b, 0.999f, 0.001f);
      c = Math.fma(c, 0.999f, 0.001f);
      d = Math.fma(d, 0.999f, 0.001f);
      e = Math.fma(e, 0.999f, 0.001f);
      f = Math.fma(f, 0.999f, 0.001f);
      g = Math.fma(g, 0.999f, 0.001f);
      h = Math.fma(h, 0.999f, 0.001f);
    }
    return a + b + c + d + e + f + g + h;
  }
}
