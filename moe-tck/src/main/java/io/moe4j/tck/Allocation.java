package io.moe4j.tck;

import com.sun.management.ThreadMXBean;
import io.moe4j.api.spi.Experts;
import java.lang.management.ManagementFactory;
import org.junit.jupiter.api.Assumptions;

/** What a call allocates on the heap, in all threads. */
final class Allocation {
  /** Noise of a call: less than an object for each of the 384 pairs more that are compared. */
  static final long SLACK = 8 * 1024;

  private static final int WARM_UP = 60;
  private static final int CALLS = 20;

  private Allocation() {}

  static long perCall(Kit kit, Problem problem) {
    if (!(ManagementFactory.getThreadMXBean() instanceof ThreadMXBean threads)) {
      return Assumptions.abort("this JVM does not count allocated bytes");
    }
    try (Experts experts = kit.prepare(problem);
        Harness harness = kit.harness(problem, experts)) {
      for (int n = 0; n < WARM_UP; n++) {
        harness.apply();
      }
      long least = Long.MAX_VALUE;
      for (int n = 0; n < CALLS; n++) {
        long before = threads.getTotalThreadAllocatedBytes();
        harness.apply();
        least = Math.min(least, threads.getTotalThreadAllocatedBytes() - before);
      }
      return least;
    }
  }
}
