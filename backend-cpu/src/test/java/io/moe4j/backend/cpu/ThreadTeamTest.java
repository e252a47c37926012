package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.time.Duration;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import org.junit.jupiter.api.Assertions;
import org.junit.jupiter.api.Test;

class ThreadTeamTest {
  private static final ThreadTeam TEAM = new ThreadTeam(4);

  @Test
  void everyTileIsDoneOnce() {
    for (int tiles : new int[] {0, 1, 3, 1000}) {
      AtomicIntegerArray done = new AtomicIntegerArray(tiles);
      TEAM.run((i, member) -> done.incrementAndGet(i), tiles);
      for (int i = 0; i < tiles; i++) {
        assertThat(done.get(i)).isEqualTo(1);
      }
    }
  }

  @Test
  void aTileWaitsForEarlierOnes() {
    for (int round = 0; round < 200; round++) {
      AtomicIntegerArray left = new AtomicIntegerArray(new int[] {8});
      AtomicIntegerArray seen = new AtomicIntegerArray(16);
      TEAM.run(
          (i, member) -> {
            if (i < 8) {
              left.decrementAndGet(0);
            } else {
              TEAM.awaitZero(left, 0);
              seen.set(i, 1 + left.get(0));
            }
          },
          16);
      for (int i = 8; i < 16; i++) {
        assertThat(seen.get(i)).isEqualTo(1);
      }
    }
  }

  @Test
  void nobodyWaitsForATileThatFailed() {
    for (int round = 0; round < 50; round++) {
      AtomicIntegerArray left = new AtomicIntegerArray(new int[] {1});
      assertThatThrownBy(() ->
              Assertions.assertTimeoutPreemptively(
                  Duration.ofSeconds(20),
                  () ->
                      TEAM.run(
                          (i, member) -> {
                            if (i == 0) {
                              throw new IllegalStateException("no room");
                            }
                            TEAM.awaitZero(left, 0);
                          },
                          8)))
          .hasMessageContaining("no room");
    }
    everyTileIsDoneOnce();
  }

  /** A worker that does not park again would take a processor for ever. */
  @Test
  void anInterruptedWorkerParksAgain() throws Exception {
    ThreadTeam team = new ThreadTeam(2);
    team.run((i, member) -> {}, 8);
    Thread worker =
        Thread.getAllStackTraces().keySet().stream()
            .filter(t -> t.getName().equals("moe4j-cpu-1") && t.isAlive())
            .max(java.util.Comparator.comparingLong(Thread::threadId))
            .orElseThrow();
    awaitParked(worker);
    for (int i = 0; i < 3; i++) {
      worker.interrupt();
      awaitParked(worker);
      assertThat(worker.isInterrupted()).isFalse();
    }
    java.lang.management.ThreadMXBean beans =
        java.lang.management.ManagementFactory.getThreadMXBean();
    long before = beans.getThreadCpuTime(worker.threadId());
    Thread.sleep(200);
    assertThat(beans.getThreadCpuTime(worker.threadId()) - before).isLessThan(100_000_000);
    AtomicIntegerArray done = new AtomicIntegerArray(1000);
    team.run((i, member) -> done.incrementAndGet(i), 1000);
    for (int i = 0; i < 1000; i++) {
      assertThat(done.get(i)).isEqualTo(1);
    }
  }

  private static void awaitParked(Thread worker) throws InterruptedException {
    for (int i = 0;
        i < 2000 && (worker.getState() != Thread.State.WAITING || worker.isInterrupted());
        i++) {
      Thread.sleep(5);
    }
    assertThat(worker.getState()).isEqualTo(Thread.State.WAITING);
  }

  @Test
  void anInterruptedCallerGetsItsResult() {
    Thread.currentThread().interrupt();
    try {
      everyTileIsDoneOnce();
    } finally {
      assertThat(Thread.interrupted()).isTrue();
    }
  }

  @Test
  void errorsOfTilesReachTheCallerAndTheTeamGoesOn() {
    for (Error e : java.util.List.of(new InternalError("x"), new StackOverflowError("x"))) {
      assertThatThrownBy(() ->
              TEAM.run(
                  (i, member) -> {
                    throw e;
                  },
                  16))
          .isSameAs(e);
      everyTileIsDoneOnce();
    }
  }

  @Test
  void threadsPropertyIsChecked() {
    assertThat(ThreadTeam.configuredThreads(null)).isPositive();
    assertThat(ThreadTeam.configuredThreads(" 3 ")).isEqualTo(3);
    for (String bad : new String[] {"abc", "", "0", "-1", "1025", "100000", "2.5"}) {
      assertThatThrownBy(() -> ThreadTeam.configuredThreads(bad))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessage("-Dmoe4j.cpu.threads is \"" + bad + "\", must be 1..1024");
    }
  }

  @Test
  void aPinnedTeamDoesEveryTile() {
    java.util.List<Integer> processors =
        System.getProperty("os.name", "").startsWith("Linux")
            ? io.moe4j.backend.cpu.ffi.Affinity.processorsByNode()
            : java.util.List.of();
    ThreadTeam team = new ThreadTeam(3, processors);
    AtomicInteger done = new AtomicInteger();
    team.run((_, _) -> done.incrementAndGet(), 100);
    assertThat(done.get()).isEqualTo(100);
  }
}
