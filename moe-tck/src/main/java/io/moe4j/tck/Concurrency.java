package io.moe4j.tck;

import io.moe4j.api.spi.Experts;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicReference;
import org.jspecify.annotations.Nullable;

/** Several batches at once on one object. */
final class Concurrency {
  private Concurrency() {}

  /**
   * One thread a problem, all started together, each comparing its own results every time.
   *
   * @param kit the backend
   * @param problems of one layer; the first one's weights are prepared
   * @param rounds calls of each thread
   */
  static void run(Kit kit, List<Problem> problems, int rounds) {
    List<double[][]> truths = new ArrayList<>();
    for (Problem p : problems) {
      truths.add(p.truth(kit.backend.activationFormat()));
    }
    List<Runnable> work = new ArrayList<>();
    List<Harness> harnesses = new ArrayList<>();
    try (Experts experts = kit.prepare(problems.getFirst())) {
      for (int n = 0; n < problems.size(); n++) {
        Problem problem = problems.get(n);
        double[][] truth = truths.get(n);
        Harness harness = kit.harness(problem, experts);
        harnesses.add(harness);
        work.add(() -> {
          for (int round = 0; round < rounds; round++) {
            Kit.apply("MOE-5.1", problem, harness);
            Compare.rows(
                "MOE-5.1",
                "beside " + (problems.size() - 1) + " other threads, " + problem,
                truth,
                harness.result(),
                problem.tolerance());
          }
          harness.requireNothingElseWritten();
        });
      }
      together(work);
    } finally {
      harnesses.forEach(Harness::close);
    }
  }

  /** Runs all at once; throws the first failure when all have ended. */
  static void together(List<Runnable> work) {
    var start = new CountDownLatch(1);
    var failure = new AtomicReference<@Nullable Throwable>();
    List<Thread> threads = new ArrayList<>();
    for (Runnable r : work) {
      threads.add(
          Thread.ofPlatform()
              .start(() -> {
                try {
                  start.await();
                  r.run();
                } catch (Throwable t) {
                  failure.compareAndSet(null, t);
                }
              }));
    }
    start.countDown();
    for (Thread t : threads) {
      try {
        t.join();
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        throw new IllegalStateException("interrupted while waiting for the calls", e);
      }
    }
    switch (failure.get()) {
      case null -> {}
      case Error e -> throw e;
      case Throwable t -> throw new AssertionError("MOE-5.1: a concurrent call failed", t);
    }
  }
}
