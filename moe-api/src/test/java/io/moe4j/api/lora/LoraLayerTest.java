package io.moe4j.api.lora;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatCode;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.Tensor;
import java.util.Map;
import org.junit.jupiter.api.Test;

class LoraLayerTest {
  private static final MoeConfig CONFIG =
      MoeConfig.builder(6, 4, 3, 1).lora(new LoraConfig(2, 8)).build();

  private static LoraFactors factors(int experts, int rank, int in, int out) {
    return new LoraFactors(
        Tensor.ofFloats(new float[experts * rank * in], experts, rank, in),
        Tensor.ofFloats(new float[experts * out * rank], experts, out, rank));
  }

  @Test
  void everyTargetHasItsOwnRank() {
    LoraLayer layer =
        new LoraLayer(
            Map.of(LoraTarget.GATE, factors(3, 2, 6, 4), LoraTarget.DOWN, factors(3, 7, 4, 6)));
    assertThatCode(() -> layer.requireFits(CONFIG)).doesNotThrowAnyException();
    assertThat(layer.maxRank()).isEqualTo(7);
    assertThat(layer.get(LoraTarget.UP)).isNull();
  }

  @Test
  void oneFactorForAllExpertsHasStrideZero() {
    LoraFactors shared =
        new LoraFactors(
            Tensor.ofFloats(new float[] {1, 2, 3, 4, 5, 6}, 1, 1, 6),
            Tensor.ofFloats(new float[12], 3, 4, 1));
    assertThat(shared.numExperts()).isEqualTo(3);
    assertThat(shared.a(2).toFloats()).containsExactly(1, 2, 3, 4, 5, 6);
    new LoraLayer(Map.of(LoraTarget.UP, shared)).requireFits(CONFIG);
  }

  @Test
  void misfitsAreNamed() {
    assertThatIllegalArgumentException()
        .isThrownBy(
            () -> new LoraLayer(Map.of(LoraTarget.UP, factors(3, 2, 5, 4))).requireFits(CONFIG))
        .withMessageContaining("UP")
        .withMessageContaining("6 -> 4");
    assertThatIllegalArgumentException()
        .isThrownBy(
            () -> new LoraLayer(Map.of(LoraTarget.UP, factors(2, 2, 6, 4))).requireFits(CONFIG))
        .withMessageContaining("cover 2 experts");
    assertThatIllegalArgumentException()
        .isThrownBy(
            () -> new LoraLayer(Map.of(LoraTarget.UP, factors(3, 9, 6, 4))).requireFits(CONFIG))
        .withMessageContaining("rank 9")
        .withMessageContaining("maxRank is 8");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            new LoraLayer(Map.of(LoraTarget.SHARED_UP, factors(1, 2, 6, 4))).requireFits(CONFIG))
        .withMessageContaining("without shared expert");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            new LoraLayer(Map.of(LoraTarget.GATE, factors(3, 2, 6, 4)))
                .requireFits(CONFIG.toBuilder().activation(Activation.RELU2_NO_MUL).build()))
        .withMessageContaining("no gate");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            new LoraLayer(Map.of(LoraTarget.UP, factors(3, 2, 6, 4)))
                .requireFits(MoeConfig.builder(6, 4, 3, 1).build()))
        .withMessageContaining("LoRA off");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            new LoraFactors(
                Tensor.ofFloats(new float[12], 1, 2, 6), Tensor.ofFloats(new float[12], 1, 4, 3)))
        .withMessageContaining("[E, r, in]");
  }
}
