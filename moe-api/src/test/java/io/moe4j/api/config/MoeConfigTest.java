package io.moe4j.api.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.tensor.DType;
import org.junit.jupiter.api.Test;

class MoeConfigTest {
  @Test
  void builderRoundTrips() {
    MoeConfig config =
        MoeConfig.builder(128, 96, 16, 4)
            .activation(Activation.SWIGLUOAI)
            .routing(RoutingConfig.deepseekV3(4, 2, true, 2.5f))
            .inputDtype(DType.BF16)
            .weightDtype(DType.F16)
            .expertBias(true)
            .latentSize(32)
            .sharedExpert(new SharedExpertConfig(64, Activation.SILU, true))
            .parallel(ParallelConfig.expert(3, 1))
            .lora(new LoraConfig(8, 64))
            .maxTokens(77)
            .build();
    assertThat(config.toBuilder().build()).isEqualTo(config);
    assertThat(config.numLocalExperts()).isEqualTo(5);
    assertThat(config.expertHiddenSize()).isEqualTo(32);
  }

  @Test
  void impossibleLayersAreRefusedByName() {
    assertThatIllegalArgumentException()
        .isThrownBy(() -> MoeConfig.builder(128, 96, 8, 9).build())
        .withMessage("topK is 9, must be 1..numExperts = 8");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> MoeConfig.builder(0, 96, 8, 2).build())
        .withMessageContaining("hiddenSize is 0");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> MoeConfig.builder(8, 8, 8, 2).inputDtype(DType.I32).build())
        .withMessageContaining("inputDtype is I32");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            MoeConfig.builder(8, 8, 10, 2).routing(RoutingConfig.deepseekV3(4, 2, true, 1)).build())
        .withMessageContaining("not divisible");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            MoeConfig.builder(8, 8, 16, 5).routing(RoutingConfig.deepseekV3(4, 1, true, 1)).build())
        .withMessageContaining("exceeds the experts");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            MoeConfig.builder(8, 8, 4, 2)
                .parallel(ParallelConfig.expert(2, 0))
                .expertMap(ExpertMap.of(0, -1, 1))
                .build())
        .withMessageContaining("expertMap covers 3");
  }

  @Test
  void expertMapsAreChecked() {
    assertThat(ExpertMap.linear(10, 3, 0).toArray())
        .containsExactly(0, 1, 2, 3, -1, -1, -1, -1, -1, -1);
    assertThat(ExpertMap.linear(10, 3, 2).toArray())
        .containsExactly(-1, -1, -1, -1, -1, -1, -1, 0, 1, 2);
    assertThatIllegalArgumentException().isThrownBy(() -> ExpertMap.of(0, 0));
    assertThatIllegalArgumentException().isThrownBy(() -> ExpertMap.of(0, 2));
    assertThatIllegalArgumentException().isThrownBy(() -> ExpertMap.of(-2, 0));
  }

  @Test
  void activationsAreChecked() {
    assertThatIllegalArgumentException()
        .isThrownBy(() -> Activation.SILU.withLimit(0))
        .withMessageContaining("limit is 0.0");
    assertThatIllegalArgumentException().isThrownBy(() -> Activation.SILU.withLimit(Float.NaN));
    assertThat(GateUpLayout.HALVES.index(true, 3, 10)).isEqualTo(13);
    assertThat(GateUpLayout.INTERLEAVED.index(true, 3, 10)).isEqualTo(7);
  }
}
