package io.moe4j.tck;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.reference.HostDevice;
import io.moe4j.reference.InProcessGroup;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** Ranks as threads, each doing its own part of one test. */
final class Ranks implements AutoCloseable {
  /** How long a rank may wait for the others where all come. */
  static final Duration PATIENT = Duration.ofSeconds(60);

  /** How long where one does not. */
  static final Duration IMPATIENT = Duration.ofMillis(500);

  /** Longer than any deadline: what has not ended by then waits for ever. */
  private static final long FOR_EVER_SECONDS = 90;

  final List<KitRank> all;

  Ranks(List<KitRank> all) {
    this.all = List.copyOf(all);
  }

  int size() {
    return all.size();
  }

  /** {@return the ranks of a group in this JVM} */
  static List<KitRank> inProcess(int size, Duration deadline) {
    List<KitRank> ranks = new ArrayList<>();
    for (Communicator c : InProcessGroup.create(size, deadline)) {
      ranks.add(new KitRank(c, new HostDevice(DeviceInfo.of(DeviceId.CPU, "host"))));
    }
    return ranks;
  }

  /** What one rank does. */
  interface Work {
    /** Runs on a thread of the rank's own. */
    void run(int rank, KitRank me) throws Exception;
  }

  /**
   * Runs all ranks together.
   *
   * @param rule number for the message if one waits for ever
   * @return what each rank threw, null where it came through
   */
  @Nullable Throwable[] run(String rule, Work work) {
    @Nullable Throwable[] failures = new Throwable[size()];
    List<Thread> threads = new ArrayList<>();
    for (int r = 0; r < size(); r++) {
      int rank = r;
      threads.add(
          Thread.ofPlatform()
              .daemon()
              .name("rank-" + r)
              .start(() -> {
                try {
                  work.run(rank, all.get(rank));
                } catch (Throwable t) {
                  failures[rank] = t;
                  if (t instanceof AssertionError) {
                    all.get(rank).communicator().abort(t); // the others need not wait
                  }
                }
              }));
    }
    for (int r = 0; r < threads.size(); r++) {
      try {
        if (!threads.get(r).join(Duration.ofSeconds(FOR_EVER_SECONDS))) {
          threads.get(r).interrupt();
          throw new AssertionError(
              rule + ": rank " + r + " still waits after " + FOR_EVER_SECONDS + " s");
        }
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        throw new IllegalStateException("interrupted while waiting for the ranks", e);
      }
    }
    return failures;
  }

  /** Runs all ranks together; the first assertion that fails is thrown, or else what came first. */
  void runAll(String rule, Work work) {
    @Nullable Throwable[] failures = run(rule, work);
    Throwable first = null;
    for (Throwable t : failures) {
      if (t instanceof AssertionError e) {
        throw e;
      }
      first = first == null ? t : first;
    }
    if (first != null) {
      throw new AssertionError(rule + ": a rank failed: " + first, first);
    }
  }

  @Override
  public void close() {
    // Leaving may wait for the others, so all leave together.
    List<Thread> threads = new ArrayList<>();
    for (KitRank r : all) {
      threads.add(Thread.ofPlatform().daemon().start(r.communicator()::close));
    }
    for (Thread t : threads) {
      try {
        t.join(TimeUnit.SECONDS.toMillis(FOR_EVER_SECONDS));
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
      }
    }
    all.forEach(r -> r.device().close());
  }
}
