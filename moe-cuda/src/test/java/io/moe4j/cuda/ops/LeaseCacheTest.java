package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.cuda.ops.LeaseCache.Lease;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

class LeaseCacheTest {
  private final List<Integer> closed = new ArrayList<>();
  private final LeaseCache<Integer> cache = new LeaseCache<>(3, closed::add);

  private Lease<Integer> add(int value) {
    cache.makeRoom();
    return cache.add(value);
  }

  private Lease<Integer> find(int value) {
    return Objects.requireNonNull(cache.find(v -> v == value));
  }

  @Test
  void theLeastRecentlyUsedGoes() {
    for (int v = 0; v < 3; v++) {
      add(v).close();
    }
    find(0).close();
    add(3).close();
    assertThat(closed).containsExactly(1);
    assertThat(cache.find(v -> v == 1)).isNull();
    cache.closeAll();
    assertThat(closed).containsExactly(1, 2, 0, 3);
  }

  /** Nine and more at once: none may go while its call enqueues. */
  @Test
  void nothingInUseGoes() {
    List<Lease<Integer>> uses = new ArrayList<>();
    for (int v = 0; v < 20; v++) {
      uses.add(add(v));
    }
    uses.add(find(7));
    assertThat(closed).isEmpty();
    uses.forEach(Lease::close);
    add(20).close();
    assertThat(closed).as("back to the number kept").hasSize(18).doesNotContain(7, 19);
  }

  @Test
  void whatAGraphReadsStays() {
    Lease<Integer> recorded = add(0);
    recorded.keep();
    recorded.close();
    for (int v = 1; v < 20; v++) {
      add(v).close();
    }
    assertThat(closed).doesNotContain(0).hasSize(16);
    assertThat(recorded.begin()).isTrue();
  }

  @Test
  void whatGraphsReadTakesNoRoomFromOthers() {
    for (int v = 0; v < 10; v++) {
      Lease<Integer> recorded = add(v);
      recorded.keep();
      recorded.close();
    }
    add(10).close();
    add(11).close();
    assertThat(closed).isEmpty();
    find(10).close();
  }

  /** A lease that somebody remembers cannot be taken up again once the object is gone. */
  @Test
  void aLeaseEndsWithItsObject() {
    Lease<Integer> first = add(0);
    first.close();
    assertThat(first.begin()).isTrue();
    first.close();
    for (int v = 1; v < 5; v++) {
      add(v).close();
    }
    assertThat(closed).contains(0);
    assertThat(first.begin()).isFalse();
  }

  /** Threads that remember leases and look others up: nobody ever holds what is closed. */
  @Test
  void threadsNeverHoldWhatIsClosed() throws Exception {
    final class Thing {
      final int key;
      volatile boolean closed;

      Thing(int key) {
        this.key = key;
      }
    }

    LeaseCache<Thing> things = new LeaseCache<>(2, t -> t.closed = true);
    AtomicInteger faults = new AtomicInteger();
    CountDownLatch start = new CountDownLatch(1);
    List<Thread> threads = new ArrayList<>();
    for (int n = 0; n < 4; n++) {
      int own = n;
      threads.add(
          Thread.ofPlatform()
              .start(() -> {
                try {
                  start.await();
                } catch (InterruptedException e) {
                  throw new AssertionError(e);
                }
                Lease<Thing> last = null;
                for (int i = 0; i < 20_000; i++) {
                  int key = (i / 3 + own) % 7;
                  if (last == null || last.value().key != key || !last.begin()) {
                    synchronized (things) {
                      last = things.find(t -> t.key == key);
                      if (last == null) {
                        things.makeRoom();
                        last = things.add(new Thing(key));
                      }
                    }
                  }
                  faults.addAndGet(last.value().closed ? 1 : 0);
                  last.close();
                }
              }));
    }
    start.countDown();
    for (Thread t : threads) {
      t.join();
    }
    assertThat(faults).hasValue(0);
  }
}
