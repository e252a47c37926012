package io.moe4j.tck;

import com.sun.management.ThreadMXBean;
import io.moe4j.api.spi.Experts;
import java.lang.management.ManagementFactory;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Assumptions;

/** What a call allocates on the heap, in all threads. */
final class Allocation {
  /** Noise of a call: less than an object for each of the 384 pairs more that are compared. */
  static final long SLACK = 8 * 1024;

  private static final int CALLS = 20;
  private static final long PATIENCE_NANOS = TimeUnit.SECONDS.toNanos(20);

  /**
   * Not final for tests of the kit itself: a backend that must be caught need not be waited for.
   */
  static volatile long stableNanos = TimeUnit.SECONDS.toNanos(5);

  private Allocation() {}

  /**
   * The least that one of some calls allocates, once the code is compiled: vectors and views are
   * objects until the optimising compiler has had its turn, so calls go on until the number is
   * small, or has been the same for long (a busy machine compiles late), or patience ends.
   */
  static long perCall(Kit kit, Problem problem) {
    if (!(ManagementFactory.getThreadMXBean() instanceof ThreadMXBean threads)) {
      return Assumptions.abort("this JVM does not count allocated bytes");
    }
    try (Experts experts = kit.prepare(problem);
        Harness harness = kit.harness(problem, experts)) {
      long begin = System.nanoTime();
      long improved = begin;
      long least = Long.MAX_VALUE;
      while (least > SLACK
          && System.nanoTime() - improved < stableNanos
          && System.nanoTime() - begin < PATIENCE_NANOS) {
        long before = least;
        for (int n = 0; n < CALLS; n++) {
          long start = threads.getTotalThreadAllocatedBytes();
          harness.apply();
          least = Math.min(least, threads.getTotalThreadAllocatedBytes() - start);
        }
        improved = least < before ? System.nanoTime() : improved;
      }
      return least;
    }
  }
}
