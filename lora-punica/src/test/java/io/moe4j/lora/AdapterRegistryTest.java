package io.moe4j.lora;

import static io.moe4j.lora.TestAdapters.LAYERS;
import static io.moe4j.lora.TestAdapters.adapter;
import static io.moe4j.lora.TestAdapters.factors;
import static io.moe4j.lora.TestAdapters.mark;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import java.time.Duration;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import org.assertj.core.api.ThrowableAssert.ThrowingCallable;
import org.assertj.core.api.ThrowableAssertAlternative;
import org.junit.jupiter.api.Test;

class AdapterRegistryTest {
  private static AdapterRegistry registry(int maxLoras, int maxCpuLoras) {
    return AdapterRegistry.builder(LAYERS)
        .maxLoras(maxLoras)
        .maxCpuLoras(maxCpuLoras)
        .slotWait(Duration.ofMillis(50))
        .build();
  }

  private static ThrowableAssertAlternative<AdapterException> refused(ThrowingCallable call) {
    return assertThatExceptionOfType(AdapterException.class).isThrownBy(call);
  }

  @Test
  void tokensGetTheirAdaptersSlots() {
    try (AdapterRegistry r = registry(2, 4)) {
      r.load(adapter("a", 1));
      r.load(adapter("b", 2));
      try (AdapterBatch batch = r.batch(Arrays.asList("b", null, "a", "", "b"))) {
        MoeLoraContext c = batch.context(1);
        int[] map = c.tokenLoraMapping().toInts();
        assertThat(map).hasSize(5);
        assertThat(map[1]).isEqualTo(-1);
        assertThat(map[3]).isEqualTo(-1);
        assertThat(map[4]).isEqualTo(map[0]).isNotEqualTo(map[2]);
        assertThat(mark(c, map[0])).isEqualTo(2);
        assertThat(mark(c, map[2])).isEqualTo(1);
        assertThat(c.hasLora()).isTrue();
        assertThat(c.maxLoras()).isEqualTo(2);
        assertThat(batch.context(1)).isSameAs(c);
        assertThat(batch.context(3).slot(0)).as("adapter leaves layer 3 alone").isNull();
        assertThat(batch.numAdapters()).isEqualTo(2);
        assertThat(batch.slot(4)).isEqualTo(map[0]);
        assertThatIllegalArgumentException()
            .isThrownBy(() -> batch.context(2))
            .withMessageContaining("layerIndex is 2")
            .withMessageContaining("[1, 3]");
      }
    }
  }

  @Test
  void handlesSayTheSameAsNames() {
    try (AdapterRegistry r = registry(2, 4)) {
      int a = r.load(adapter("a", 1));
      int b = r.load(adapter("b", 2));
      assertThat(r.handle("b")).isEqualTo(b);
      try (AdapterBatch names = r.batch(Arrays.asList("b", null, "a"));
          AdapterBatch handles = r.batch(b, AdapterRegistry.BASE, a)) {
        assertThat(handles.context(1).tokenLoraMapping().toInts())
            .isEqualTo(names.context(1).tokenLoraMapping().toInts());
      }
      r.unload("a");
      int again = r.load(adapter("a", 3));
      assertThat(again).isNotEqualTo(a);
      refused(() -> r.batch(a)).withMessageContaining("handle " + a);
      refused(() -> r.batch(-2)).withMessageContaining("handle -2");
      refused(() -> r.batch(Integer.MAX_VALUE)).withMessageContaining("handle 2147483647");
    }
  }

  @Test
  void aBaseBatchNeedsNoSlot() {
    try (AdapterRegistry r = registry(1, 1)) {
      r.load(adapter("a", 1));
      try (AdapterBatch busy = r.batch(List.of("a"));
          AdapterBatch base = r.batch(Arrays.asList(null, ""));
          AdapterBatch empty = r.batch(List.of())) {
        assertThat(busy.numAdapters()).isEqualTo(1);
        assertThat(base.context(1).hasLora()).isFalse();
        assertThat(base.context(1).tokenLoraMapping().toInts()).containsExactly(-1, -1);
        assertThat(empty.context(3).tokenLoraMapping().shape()).containsExactly(0);
      }
    }
  }

  @Test
  void moreAdaptersThanSlotsIsAnErrorWithTheCounts() {
    try (AdapterRegistry r = registry(2, 8)) {
      for (String n : List.of("a", "b", "c")) {
        r.load(adapter(n, 1));
      }
      refused(() -> r.batch(List.of("a", "b", "c")))
          .withMessageContaining("3 distinct adapters")
          .withMessageContaining("2 slots");
      // Nothing is held after a failure, and the batch object still works.
      AdapterBatch batch = r.newBatch();
      refused(() -> batch.reset(List.of("a", "b", "c", "a")));
      refused(() -> batch.reset(List.of("a", "nobody")))
          .withMessageContaining("'nobody' is not loaded")
          .withMessageContaining("[a, b, c]");
      batch.reset(List.of("c", "b"));
      assertThat(r.stats().leasedSlots()).isEqualTo(2);
      batch.close();
      assertThat(r.stats().leasedSlots()).isZero();
    }
  }

  @Test
  void theLeastRecentlyUsedLosesItsSlot() {
    try (AdapterRegistry r = registry(2, 8)) {
      for (String n : List.of("a", "b", "c")) {
        r.load(adapter(n, 1));
      }
      r.batch(List.of("a")).close();
      r.batch(List.of("b")).close();
      r.batch(List.of("a")).close();
      r.batch(List.of("c")).close();
      AdapterStats s = r.stats();
      assertThat(s.uploads()).isEqualTo(3);
      assertThat(s.hits()).isEqualTo(1);
      assertThat(s.evictions()).isEqualTo(1);
      assertThat(s.occupiedSlots()).isEqualTo(2);
      r.batch(List.of("a")).close();
      assertThat(r.stats().hits()).as("b was evicted, not a").isEqualTo(2);
    }
  }

  @Test
  void pinnedAdaptersStay() {
    try (AdapterRegistry r = registry(2, 2)) {
      r.load(adapter("a", 1));
      r.pin("a");
      assertThat(r.stats().uploads()).isEqualTo(1);
      r.load(adapter("b", 2));
      r.batch(List.of("b")).close();
      r.load(adapter("c", 3));
      assertThat(r.names()).as("host cache of 2: b made room").containsExactly("a", "c");
      assertThat(r.stats().hostEvictions()).isEqualTo(1);
      refused(() -> r.batch(List.of("b"))).withMessageContaining("host cache of 2");
      r.batch(List.of("c")).close();
      r.batch(List.of("a")).close();
      assertThat(r.stats().hits()).as("a never left its slot").isEqualTo(1);
      r.pin("c");
      refused(() -> r.load(adapter("d", 4)))
          .withMessageContaining("'d'")
          .withMessageContaining("all 2 adapters in it are pinned");
      r.unpin("c");
      r.load(adapter("d", 4));
      refused(() -> r.pin("c")).withMessageContaining("'c' is not loaded");
      refused(() -> r.unpin("c")).withMessageContaining("'c' is not loaded");
      refused(() -> r.batch(List.of("d", "c")));
    }
  }

  @Test
  void slotsPinnedToOthersAreNotWaitedFor() {
    try (AdapterRegistry r =
        AdapterRegistry.builder(LAYERS).maxLoras(2).slotWait(Duration.ofDays(1)).build()) {
      for (String n : List.of("a", "b", "c")) {
        r.load(adapter(n, 1));
      }
      r.pin("a");
      r.batch(List.of("a", "b")).close();
      refused(() -> r.batch(List.of("b", "c")))
          .withMessageContaining("2 adapters [b, c]")
          .withMessageContaining("of 2 slots 1 are pinned");
      r.pin("b");
      refused(() -> r.pin("c")).withMessageContaining("2 are pinned");
    }
  }

  @Test
  void replacingGivesTheNewVersionToNewBatchesOnly() {
    try (AdapterRegistry r = registry(2, 4)) {
      int handle = r.load(adapter("a", 1));
      AdapterBatch old = r.batch(List.of("a"));
      r.replace(adapter("a", 2));
      assertThat(r.handle("a")).isEqualTo(handle);
      AdapterBatch now = r.batch(handle);
      assertThat(mark(old.context(1), old.slot(0))).isEqualTo(1);
      assertThat(mark(now.context(1), now.slot(0))).isEqualTo(2);
      assertThat(old.slot(0)).isNotEqualTo(now.slot(0));
      assertThat(now.context(1).slot(old.slot(0))).as("not its lease").isNull();
      old.close();
      assertThat(r.stats().occupiedSlots()).as("the old version's slot is free").isEqualTo(1);
      now.close();
      refused(() -> r.replace(adapter("b", 1))).withMessageContaining("'b' is not loaded");
      refused(() -> r.load(adapter("a", 3))).withMessageContaining("'a' is loaded already");
    }
  }

  @Test
  void unloadingLeavesOpenBatchesAlone() {
    AdapterRegistry r = registry(1, 4);
    r.load(adapter("a", 1));
    r.pin("a");
    AdapterBatch open = r.batch(List.of("a"));
    assertThat(r.unload("a")).isTrue();
    assertThat(r.unload("a")).isFalse();
    assertThat(mark(open.context(1), 0)).isEqualTo(1);
    r.load(adapter("b", 2));
    refused(() -> r.batch(List.of("b")))
        .withMessageContaining("waited 50 ms")
        .withMessageContaining("[b]")
        .withMessageContaining("1 are in use");
    r.close();
    assertThat(mark(open.context(1), 0)).as("closing the registry, too").isEqualTo(1);
    open.close();
    open.close();
    assertThat(r.stats().occupiedSlots()).isZero();
    assertThatIllegalStateException().isThrownBy(() -> r.batch(List.of()));
    assertThatIllegalStateException().isThrownBy(() -> r.load(adapter("c", 1)));
  }

  @Test
  void aReleasedBatchShowsNothing() {
    try (AdapterRegistry r = registry(1, 4)) {
      r.load(adapter("a", 1));
      AdapterBatch batch = r.batch(List.of("a"));
      MoeLoraContext context = batch.context(1);
      batch.release();
      assertThatIllegalStateException().isThrownBy(() -> context.slot(0));
      assertThatIllegalStateException().isThrownBy(context::tokenLoraMapping);
      assertThatIllegalStateException().isThrownBy(() -> batch.context(1));
      batch.reset(new int[] {r.handle("a"), -1, 7}, 2);
      assertThat(context.tokenLoraMapping().toInts()).containsExactly(0, -1);
      batch.close();
      assertThatIllegalStateException().isThrownBy(() -> batch.reset(List.of("a")));
    }
  }

  @Test
  void anotherMappingSeesTheSameSlots() {
    try (AdapterRegistry r = registry(1, 4)) {
      r.load(adapter("a", 5));
      try (AdapterBatch batch = r.batch(List.of("a"))) {
        Tensor dispatched = Tensor.ofInts(new int[] {0, -1, 0, 0}, 2, 2);
        MoeLoraContext c = batch.context(1).withTokenLoraMapping(dispatched);
        assertThat(c.tokenLoraMapping()).isSameAs(dispatched);
        assertThat(mark(c, 0)).isEqualTo(5);
        assertThatIllegalArgumentException()
            .isThrownBy(() -> c.withTokenLoraMapping(Tensor.ofFloats(new float[1], 1)))
            .withMessageContaining("must be I32");
      }
    }
  }

  @Test
  void aResetBatchGrowsAndShrinks() {
    try (AdapterRegistry r = registry(2, 4)) {
      r.load(adapter("a", 1));
      r.load(adapter("b", 2));
      AdapterBatch batch = r.newBatch();
      for (int tokens : new int[] {1, 300, 0, 64, 65, 2, 1000}) {
        String[] names = new String[tokens];
        Arrays.setAll(names, t -> t % 2 == 0 ? "a" : "b");
        batch.reset(Arrays.asList(names));
        int[] map = batch.context(1).tokenLoraMapping().toInts();
        assertThat(map).hasSize(tokens);
        for (int t = 0; t < tokens; t++) {
          assertThat(mark(batch.context(1), map[t])).isEqualTo(t % 2 == 0 ? 1 : 2);
        }
      }
      batch.close();
    }
  }

  @Test
  void misfitsNameAdapterAndLayer() {
    try (AdapterRegistry r = registry(1, 4)) {
      LoraLayer rank9 = new LoraLayer(Map.of(LoraTarget.UP, factors(9, 1)));
      refused(() -> r.load(new LoraAdapter("x", Map.of(3, rank9))))
          .withMessageContaining("adapter 'x', layer 3")
          .withMessageContaining("rank 9")
          .withMessageContaining("maxRank is 8");
      refused(() -> r.load(new LoraAdapter("x", Map.of(2, LoraLayer.NONE))))
          .withMessageContaining("adapter 'x', layer 2")
          .withMessageContaining("[1, 3]");
      LoraLayer wrong = new LoraLayer(Map.of(LoraTarget.DOWN, factors(2, 1)));
      refused(() -> r.load(new LoraAdapter("x", Map.of(1, wrong))))
          .withMessageContaining("adapter 'x', layer 1: DOWN");
      r.load(adapter("x", 1));
      refused(() -> r.replace(new LoraAdapter("x", Map.of(1, wrong))));
      try (AdapterBatch batch = r.batch(List.of("x"))) {
        assertThat(mark(batch.context(1), 0)).as("the refused version left no trace").isEqualTo(1);
      }
    }
  }

  @Test
  void settingsThatDoNotFit() {
    assertThatIllegalArgumentException()
        .isThrownBy(() -> AdapterRegistry.builder(Map.of()))
        .withMessageContaining("layers is empty");
    MoeConfig off = MoeConfig.builder(4, 4, 2, 1).build();
    assertThatIllegalArgumentException()
        .isThrownBy(() -> AdapterRegistry.builder(Map.of(7, off)))
        .withMessageContaining("layer 7 has LoRA off");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> AdapterRegistry.builder(LAYERS).maxLoras(9))
        .withMessageContaining("maxLoras is 9")
        .withMessageContaining("1..8");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> AdapterRegistry.builder(LAYERS).maxCpuLoras(7).build())
        .withMessageContaining("maxCpuLoras is 7")
        .withMessageContaining("maxLoras = 8");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> AdapterRegistry.builder(LAYERS).slotWait(Duration.ofSeconds(-1)))
        .withMessageContaining("slotWait");
  }
}
