package io.moe4j.micrometer;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.micrometer.core.instrument.Tags;
import io.micrometer.core.instrument.simple.SimpleMeterRegistry;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeLayer;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class MoeMetersTest {
  private static Tensor zeros(int rows, int columns) {
    return Tensor.ofFloats(new float[rows * columns], rows, columns);
  }

  @Test
  void metersSayWhatHappened() {
    MoeConfig config =
        MoeConfig.builder(8, 4, 2, 1)
            .weightDtype(DType.F32)
            .maxTokens(16)
            .lora(new LoraConfig(2, 4))
            .build();
    ExpertWeights.Expert expert = ExpertWeights.Expert.plain(zeros(4, 8), zeros(4, 8), zeros(8, 4));
    MoeLayerWeights weights =
        new MoeLayerWeights(
            new ExpertWeights(List.of(expert, expert)),
            new RouterWeights(zeros(2, 8), null, null),
            null,
            null);
    SimpleMeterRegistry meters = new SimpleMeterRegistry();
    try (MoeLayer layer = MoeLayer.builder(config, weights).backend("cpu").build();
        AdapterRegistry adapters = AdapterRegistry.builder(Map.of(0, config)).build()) {
      MoeMeters.of(layer, Tags.of("layer", "0")).bindTo(meters);
      MoeMeters.of(layer.scratchPool(), Tags.empty()).bindTo(meters);
      MoeMeters.of(adapters, Tags.empty()).bindTo(meters);
      layer.forward(zeros(3, 8), zeros(3, 8));
      layer.forward(zeros(5, 8), zeros(5, 8));
      assertThatThrownBy(() -> layer.forward(zeros(3, 7), zeros(3, 7)))
          .isInstanceOf(IllegalArgumentException.class); // refused: neither forward nor failure
      adapters.load(new LoraAdapter("a", Map.of()));

      var timer =
          meters.get("moe4j.forwards").tag("layer", "0").tag("backend", "cpu").functionTimer();
      assertThat(timer.count()).isEqualTo(2);
      assertThat(timer.totalTime(TimeUnit.NANOSECONDS)).isPositive();
      assertThat(meters.get("moe4j.tokens").functionCounter().count()).isEqualTo(8);
      assertThat(meters.get("moe4j.forward.failures").functionCounter().count()).isZero();
      assertThat(meters.get("moe4j.weights").gauge().value()).isEqualTo(4.0 * (2 * 3 * 32 + 16));
      assertThat(meters.get("moe4j.scratch.per.forward").gauge().value())
          .isEqualTo(meters.get("moe4j.scratch").gauge().value())
          .isPositive();
      assertThat(meters.get("moe4j.scratch.pieces").gauge().value()).isEqualTo(1);
      assertThat(meters.get("moe4j.scratch.lent").gauge().value()).isZero();
      assertThat(meters.get("moe4j.scratch.waits").functionTimer().count()).isZero();
      assertThat(meters.get("moe4j.adapters.loaded").gauge().value()).isEqualTo(1);
      assertThat(meters.get("moe4j.adapter.slots").tag("state", "leased").gauge().value()).isZero();
    }
  }
}
