package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.time.Duration;
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
}
