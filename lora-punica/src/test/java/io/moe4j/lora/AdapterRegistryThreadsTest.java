package io.moe4j.lora;

import static io.moe4j.lora.TestAdapters.adapter;
import static io.moe4j.lora.TestAdapters.mark;
import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.AdapterException;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

@Timeout(60)
class AdapterRegistryThreadsTest {
  private static AdapterRegistry registry(int maxLoras, Duration wait) {
    return AdapterRegistry.builder(TestAdapters.LAYERS).maxLoras(maxLoras).slotWait(wait).build();
  }

  @Test
  void aWaitingBatchGoesOnWhenAnotherIsReleased() throws Exception {
    try (AdapterRegistry r = registry(1, Duration.ofSeconds(30));
        ExecutorService pool = Executors.newSingleThreadExecutor()) {
      r.load(adapter("a", 1));
      r.load(adapter("b", 2));
      AdapterBatch first = r.batch(List.of("a"));
      Future<Double> second =
          pool.submit(() -> {
            try (AdapterBatch batch = r.batch(List.of("b"))) {
              return mark(batch.context(1), batch.slot(0));
            }
          });
      awaitWaits(r, 1);
      assertThat(second.isDone()).isFalse();
      first.close();
      assertThat(second.get(10, TimeUnit.SECONDS)).isEqualTo(2);
      assertThat(r.stats().waits()).isEqualTo(1);
    }
  }

  @Test
  void aBatchOfManySlotsIsNotStarvedBySmallOnes() throws Exception {
    try (AdapterRegistry r = registry(2, Duration.ofSeconds(30));
        ExecutorService pool = Executors.newFixedThreadPool(2)) {
      for (String n : List.of("a", "b", "c", "d")) {
        r.load(adapter(n, 1));
      }
      List<String> order = new CopyOnWriteArrayList<>();
      AdapterBatch a = r.batch(List.of("a"));
      Future<?> large =
          pool.submit(() -> {
            try (AdapterBatch batch = r.batch(List.of("b", "c"))) {
              order.add("large" + batch.numAdapters());
            }
          });
      awaitWaits(r, 1);
      // One slot is free and would do for d, but the large batch came first.
      Future<?> small =
          pool.submit(() -> {
            try (AdapterBatch batch = r.batch(List.of("d"))) {
              order.add("small" + batch.numAdapters());
            }
          });
      awaitWaits(r, 2);
      a.close();
      large.get(10, TimeUnit.SECONDS);
      small.get(10, TimeUnit.SECONDS);
      assertThat(order).containsExactly("large2", "small1");
    }
  }

  @Test
  void thoseBehindOneThatGivesUpGoOn() throws Exception {
    try (AdapterRegistry r = registry(2, Duration.ofSeconds(1));
        ExecutorService pool = Executors.newFixedThreadPool(2)) {
      for (String n : List.of("a", "b", "c", "d")) {
        r.load(adapter(n, 1));
      }
      AdapterBatch a = r.batch(List.of("a"));
      Future<String> large =
          pool.submit(() -> {
            try (AdapterBatch batch = r.batch(List.of("b", "c"))) {
              return "got " + batch.numAdapters();
            } catch (AdapterException e) {
              return String.valueOf(e.getMessage());
            }
          });
      awaitWaits(r, 1);
      TimeUnit.MILLISECONDS.sleep(300);
      Future<Integer> small =
          pool.submit(() -> {
            try (AdapterBatch batch = r.batch(List.of("d"))) {
              return batch.numAdapters();
            }
          });
      assertThat(large.get(10, TimeUnit.SECONDS)).contains("waited 1000 ms").contains("[b, c]");
      assertThat(small.get(10, TimeUnit.SECONDS)).isEqualTo(1);
      a.close();
    }
  }

  @Test
  void anInterruptEndsTheWait() throws Exception {
    try (AdapterRegistry r = registry(1, Duration.ofDays(1))) {
      r.load(adapter("a", 1));
      r.load(adapter("b", 2));
      AdapterBatch a = r.batch(List.of("a"));
      List<Object> seen = new CopyOnWriteArrayList<>();
      Thread waiter =
          new Thread(() -> {
            try (AdapterBatch batch = r.batch(List.of("b"))) {
              seen.add(batch);
            } catch (AdapterException e) {
              seen.add(String.valueOf(e.getMessage()));
              seen.add(Thread.currentThread().isInterrupted());
            }
          });
      waiter.start();
      awaitWaits(r, 1);
      waiter.interrupt();
      waiter.join();
      assertThat(seen).hasSize(2);
      assertThat((String) seen.get(0)).contains("interrupted").contains("[b]");
      assertThat(seen.get(1)).isEqualTo(true);
      a.close();
      r.batch(List.of("b")).close();
    }
  }

  private static void awaitWaits(AdapterRegistry r, long waits) throws InterruptedException {
    while (r.stats().waits() < waits) {
      TimeUnit.MILLISECONDS.sleep(1);
    }
  }

  /**
   * Six readers and two writers. An adapter's mark is {@code 100 * index + version}; a reader must
   * see one mark of the right adapter, unchanged while its batch is open, and never a version older
   * than the one that was current before it asked.
   */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void versionsNeverMixUnderChurn(boolean onDevice) throws Exception {
    FakeDevice device = new FakeDevice();
    int adapters = 24;
    AtomicInteger[] current = new AtomicInteger[adapters];
    List<String> problems = new CopyOnWriteArrayList<>();
    CountDownLatch start = new CountDownLatch(1);
    AtomicInteger batches = new AtomicInteger();
    AdapterRegistry.Builder builder =
        AdapterRegistry.builder(TestAdapters.LAYERS).maxLoras(4).slotWait(Duration.ofSeconds(30));
    if (onDevice) {
      builder.device(device).punicaWrapper(CpuPunicaWrapper.shared());
    }
    try (AdapterRegistry r = builder.build();
        ExecutorService pool = Executors.newFixedThreadPool(8)) {
      for (int i = 0; i < adapters; i++) {
        current[i] = new AtomicInteger();
        r.load(adapter("n" + i, 100 * i));
      }
      List<Future<?>> work = new ArrayList<>();
      for (int w = 0; w < 2; w++) {
        int writer = w;
        work.add(
            pool.submit(() -> {
              SplittableRandom rng = new SplittableRandom(writer);
              start.await();
              for (int i = 0; i < 4000; i++) {
                int a = rng.nextInt(adapters / 2) * 2 + writer;
                switch (rng.nextInt(4)) {
                  case 0 -> {
                    r.unload("n" + a);
                    int next = current[a].get() + 1;
                    r.load(adapter("n" + a, 100 * a + next % 100));
                    current[a].set(next);
                  }
                  case 1 -> {
                    r.pin("n" + a);
                    r.unpin("n" + a);
                  }
                  default -> {
                    int next = current[a].get() + 1;
                    r.replace(adapter("n" + a, 100 * a + next % 100));
                    current[a].set(next);
                  }
                }
              }
              return null;
            }));
      }
      for (int t = 0; t < 6; t++) {
        int reader = t;
        work.add(
            pool.submit(() -> {
              SplittableRandom rng = new SplittableRandom(100 + reader);
              AdapterBatch batch = r.newBatch();
              start.await();
              for (int i = 0; i < 6000; i++) {
                int[] who = rng.ints(4, -1, adapters).toArray();
                int[] before = new int[4];
                List<String> names = new ArrayList<>();
                for (int k = 0; k < 4; k++) {
                  names.add(who[k] < 0 ? "" : "n" + who[k]);
                  before[k] = who[k] < 0 ? 0 : current[who[k]].get();
                }
                try {
                  batch.reset(names);
                } catch (AdapterException e) {
                  String m = String.valueOf(e.getMessage());
                  if (!m.contains("not loaded")
                      && !m.contains("was unloaded")
                      && !m.contains("pinned")) {
                    problems.add(m);
                  }
                  continue;
                }
                batches.incrementAndGet();
                MoeLoraContext c = batch.context(1);
                Tensor mapping = c.tokenLoraMapping();
                int[] map = (onDevice ? device.read(mapping) : mapping).toInts();
                for (int k = 0; k < 4; k++) {
                  if (who[k] < 0) {
                    if (map[k] != -1) {
                      problems.add("a base token has slot " + map[k]);
                    }
                    continue;
                  }
                  int mark = (int) (onDevice ? mark(device, c, map[k]) : mark(c, map[k]));
                  int after = current[who[k]].get();
                  int behind = Math.floorMod(mark % 100 - before[k], 100);
                  // The writer publishes the version after the registry has it: one ahead is right.
                  if (mark / 100 != who[k] || behind > after - before[k] + 1) {
                    problems.add(
                        "n" + who[k] + " shows " + mark + ", versions " + before[k] + ".." + after);
                  }
                  if (mark != (int) (onDevice ? mark(device, c, map[k]) : mark(c, map[k]))) {
                    problems.add("a slot changed while leased");
                  }
                }
              }
              batch.close();
              return null;
            }));
      }
      start.countDown();
      for (Future<?> f : work) {
        f.get(50, TimeUnit.SECONDS);
      }
      assertThat(problems).isEmpty();
      assertThat(batches.get()).isGreaterThan(1000);
      AdapterStats s = r.stats();
      assertThat(s.leasedSlots()).isZero();
      assertThat(s.evictions()).isPositive();
      assertThat(s.occupiedSlots()).isLessThanOrEqualTo(4);
      assertThat(device.memory).as("one buffer a slot").hasSize(onDevice ? s.occupiedSlots() : 0);
    }
    assertThat(device.memory).as("all given back").isEmpty();
  }
}
