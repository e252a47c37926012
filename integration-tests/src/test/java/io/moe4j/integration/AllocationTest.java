package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import java.lang.management.ManagementFactory;
import java.util.Map;
import org.junit.jupiter.api.Test;

/** What engines that count allocations rely on. */
class AllocationTest {
  private static final com.sun.management.ThreadMXBean THREADS =
      (com.sun.management.ThreadMXBean) ManagementFactory.getThreadMXBean();

  private static LoraAdapter adapter(String name) {
    LoraFactors f =
        new LoraFactors(
            Tensor.ofFloats(new float[2 * 6], 1, 2, 6), Tensor.ofFloats(new float[4 * 2], 1, 4, 2));
    return new LoraAdapter(name, Map.of(0, new LoraLayer(Map.of(LoraTarget.UP, f))));
  }

  @Test
  void resettingABatchByHandlesAllocatesNothingThatGrowsWithIt() {
    MoeConfig config = MoeConfig.builder(6, 4, 3, 1).lora(new LoraConfig(2, 8)).build();
    try (AdapterRegistry registry = AdapterRegistry.builder(Map.of(0, config)).build();
        AdapterBatch batch = registry.newBatch()) {
      int[] handles = {
        registry.load(adapter("a")), registry.load(adapter("b")), registry.load(adapter("c"))
      };
      for (int tokens : new int[] {8, 8000}) {
        assertThat(bytesPerReset(batch, handles, new int[tokens])).isLessThan(1000);
      }
      assertThat(registry.stats().evictions()).as("slots changed hands").isPositive();
    }
  }

  private static long bytesPerReset(AdapterBatch batch, int[] handles, int[] tokens) {
    int rounds = 2000;
    long before = 0;
    for (int i = -rounds; i < rounds; i++) {
      if (i == 0) {
        before = THREADS.getCurrentThreadAllocatedBytes();
      }
      for (int t = 0; t < tokens.length; t++) {
        tokens[t] = t % 3 == 0 ? AdapterRegistry.BASE : handles[(i & 1) + t % 2];
      }
      batch.reset(tokens, tokens.length);
    }
    return (THREADS.getCurrentThreadAllocatedBytes() - before) / rounds;
  }
}
