package io.moe4j.lora.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.lora.SlotsKey;
import java.lang.ref.Reference;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.BooleanSupplier;
import org.junit.jupiter.api.Test;

/** What is kept for the slots of a layer, and for how long; needs no card. */
class KeyedValuesTest {
  private final Set<Integer> closed = ConcurrentHashMap.newKeySet();
  private final KeyedValues<SlotsKey, Integer> values = new KeyedValues<>(closed::add);

  /** Collects until it is so; the collector may take its time. */
  private void collectUntil(BooleanSupplier done) throws InterruptedException {
    long end = System.nanoTime() + Duration.ofSeconds(60).toNanos();
    while (!done.getAsBoolean() && System.nanoTime() < end) {
      System.gc();
      Thread.sleep(10);
      values.closeUnreachable();
    }
  }

  @Test
  void shrinksWithShortLivedKeys() throws InterruptedException {
    SlotsKey lives = new SlotsKey("lives");
    assertThat(values.get(lives, () -> -1)).isEqualTo(-1);
    for (int i = 0; i < 1000; i++) {
      int value = i;
      assertThat(values.get(new SlotsKey("registry " + i), () -> value)).isEqualTo(i);
    }
    collectUntil(() -> values.size() == 1);
    assertThat(values.size()).isEqualTo(1);
    assertThat(closed).hasSize(1000).doesNotContain(-1);
    assertThat(values.get(lives)).isEqualTo(-1);
    Reference.reachabilityFence(lives);
  }

  /** A captured graph has the address of such a value. */
  @Test
  void whatIsKeptOutlivesItsKey() throws InterruptedException {
    keepOne();
    values.get(new SlotsKey("goes"), () -> 2);
    collectUntil(() -> closed.contains(2));
    assertThat(closed).containsExactly(2);
    values.close();
    assertThat(closed).containsExactlyInAnyOrder(1, 2);
    assertThat(values.size()).isZero();
  }

  private void keepOne() {
    SlotsKey captured = new SlotsKey("captured");
    values.get(captured, () -> 1);
    values.keep(captured);
    values.keep(captured);
  }

  @Test
  void keysAreIdentities() {
    SlotsKey a = new SlotsKey("same");
    SlotsKey b = new SlotsKey("same");
    values.get(a, () -> 1);
    assertThat(values.get(b)).isNull();
    assertThat(values.get(b, () -> 2)).isEqualTo(2);
    assertThat(values.get(a, () -> 3)).isEqualTo(1);
    assertThat(values.size()).isEqualTo(2);
    values.close();
    assertThat(closed).containsExactlyInAnyOrder(1, 2);
    Reference.reachabilityFence(List.of(a, b));
  }

  @Test
  void manyThreadsMakeOneValue() throws Exception {
    SlotsKey key = new SlotsKey("shared");
    AtomicInteger made = new AtomicInteger();
    List<Future<Integer>> all = new ArrayList<>();
    try (ExecutorService pool = Executors.newFixedThreadPool(8)) {
      for (int i = 0; i < 64; i++) {
        all.add(pool.submit(() -> values.get(key, made::incrementAndGet)));
      }
    }
    for (Future<Integer> f : all) {
      assertThat(f.get()).isEqualTo(1);
    }
    assertThat(made).hasValue(1);
  }
}
