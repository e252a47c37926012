package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.backend.cpu.ffi.Affinity;
import io.moe4j.backend.cpu.ffi.Affinity.Place;
import io.moe4j.backend.cpu.options.CpuOptions;
import io.moe4j.backend.cpu.options.PackPolicy;
import java.time.Duration;
import java.util.List;
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

  /** Threads stay as long as the JVM, so there must not be a new team for each layer. */
  @Test
  void layersOfEqualOptionsShareATeam() {
    ThreadTeam two = ThreadTeam.of(CpuOptions.DEFAULT.withThreads(2));
    assertThat(two.size()).isEqualTo(2);
    assertThat(two.description()).isEqualTo("2");
    assertThat(ThreadTeam.of(CpuOptions.DEFAULT.withThreads(2).withPack(PackPolicy.NEVER)))
        .isSameAs(two);
    assertThat(ThreadTeam.of(CpuOptions.DEFAULT.withThreads(3)).size()).isEqualTo(3);
    ThreadTeam all = ThreadTeam.of(CpuOptions.DEFAULT);
    assertThat(all.size()).isEqualTo(Runtime.getRuntime().availableProcessors());
    assertThat(ThreadTeam.of(CpuOptions.DEFAULT.withThreads(all.size()))).isSameAs(all);
    assertThat(ThreadTeam.of(CpuOptions.DEFAULT.withThreads(2).withPinned(true))).isNotSameAs(two);
  }

  @Test
  void aPinnedTeamDoesEveryTile() {
    List<Place> places =
        System.getProperty("os.name", "").startsWith("Linux") ? Affinity.places() : List.of();
    ThreadTeam team = new ThreadTeam(3, places);
    AtomicInteger done = new AtomicInteger();
    team.run((_, _) -> done.incrementAndGet(), 100);
    assertThat(done.get()).isEqualTo(100);
  }

  /** Members 0, 2 and 3 are of one node, 1 and 4 of another; none of them is pinned. */
  private static ThreadTeam onTwoNodes() {
    Place near = new Place(-1, 7);
    Place far = new Place(-1, 9);
    return new ThreadTeam(5, List.of(near, far, near, near, far));
  }

  private static boolean isFar(int member) {
    return member == 1 || member == 4;
  }

  @Test
  void membersOfOneNodeAreOneTeam() {
    assertThat(onTwoNodes().nodes()).isEqualTo(2);
    assertThat(new ThreadTeam(2, List.of(new Place(-1, 3), new Place(-1, 3))).nodes()).isOne();
    // the second node has no member
    assertThat(new ThreadTeam(1, List.of(new Place(-1, 3), new Place(-1, 4))).nodes()).isOne();
  }

  @Test
  void tilesAtHomeAreDoneByTheirNode() {
    ThreadTeam team = onTwoNodes();
    for (int[] behind : new int[][] {{600, 1000}, {0, 50}, {50, 50}, {1, 2}, {0, 0}}) {
      // A machine that gives a node's threads no time at all lets the caller do their tiles.
      int fewest = behind[1];
      for (int round = 0; round < 20; round++) {
        AtomicIntegerArray done = new AtomicIntegerArray(behind[1]);
        AtomicInteger strangers = new AtomicInteger();
        team.run(
            (i, member) -> {
              done.incrementAndGet(i);
              strangers.addAndGet(isFar(member) == i >= behind[0] ? 0 : 1);
            },
            behind,
            true);
        for (int i = 0; i < behind[1]; i++) {
          assertThat(done.get(i)).isOne();
        }
        fewest = Math.min(fewest, strangers.get());
      }
      assertThat(fewest).isZero();
    }
  }

  /** The far node's members are kept busy; somebody else does the rest of its tiles. */
  @Test
  void whatIsLeftOfAnotherNodeIsDone() {
    ThreadTeam team = onTwoNodes();
    for (boolean atHome : new boolean[] {false, true}) {
      int tiles = 64;
      AtomicInteger near = new AtomicInteger();
      AtomicIntegerArray done = new AtomicIntegerArray(tiles);
      AtomicIntegerArray left = new AtomicIntegerArray(new int[] {tiles - 2});
      Assertions.assertTimeoutPreemptively(
          Duration.ofSeconds(30),
          () ->
              team.run(
                  (i, member) -> {
                    done.incrementAndGet(i);
                    if (isFar(member)) {
                      // until all tiles that members of its node do not hold are done
                      team.awaitZero(left, 0);
                    } else {
                      near.incrementAndGet();
                      left.decrementAndGet(0);
                    }
                  },
                  new int[] {0, tiles},
                  atHome));
      for (int i = 0; i < tiles; i++) {
        assertThat(done.get(i)).isOne();
      }
      assertThat(near.get()).isGreaterThanOrEqualTo(tiles - 2);
    }
  }

  @Test
  void aFailureOnOneNodeEndsTheOther() {
    ThreadTeam team = onTwoNodes();
    for (boolean atHome : new boolean[] {false, true}) {
      assertThatThrownBy(() ->
              Assertions.assertTimeoutPreemptively(
                  Duration.ofSeconds(30),
                  () ->
                      team.run(
                          (i, _) -> {
                            if (i == 40) {
                              throw new IllegalStateException("no room");
                            }
                          },
                          new int[] {40, 80},
                          atHome)))
          .hasMessageContaining("no room");
      AtomicInteger done = new AtomicInteger();
      team.run((_, _) -> done.incrementAndGet(), new int[] {40, 80}, atHome);
      assertThat(done.get()).isEqualTo(80);
    }
  }

  /** Whoever finds the team busy does all tiles of all nodes alone. */
  @Test
  void twoCallersAtOnce() throws Exception {
    ThreadTeam team = onTwoNodes();
    AtomicIntegerArray done = new AtomicIntegerArray(2 * 500);
    Thread[] callers = new Thread[2];
    for (int c = 0; c < 2; c++) {
      int first = 500 * c;
      callers[c] =
          new Thread(() -> {
            for (int round = 0; round < 20; round++) {
              team.run((i, _) -> done.incrementAndGet(first + i), new int[] {200, 500}, true);
            }
          });
      callers[c].start();
    }
    for (Thread c : callers) {
      c.join(60_000);
    }
    for (int i = 0; i < done.length(); i++) {
      assertThat(done.get(i)).isEqualTo(20);
    }
  }

  /** Every block of every expert is of one node, and each node has its share of each expert. */
  @Test
  void sharesOfNodesCoverAllBlocks() {
    for (int nodes = 1; nodes <= 8; nodes++) {
      for (int blocks : new int[] {1, 2, 7, 64, 1000}) {
        assertThat(NodeShare.first(blocks, nodes, 0)).isZero();
        assertThat(NodeShare.first(blocks, nodes, nodes)).isEqualTo(blocks);
        for (int n = 0; n < nodes; n++) {
          assertThat(NodeShare.first(blocks, nodes, n + 1) - NodeShare.first(blocks, nodes, n))
              .isBetween(blocks / nodes, Math.ceilDiv(blocks, nodes));
        }
      }
    }
  }
}
