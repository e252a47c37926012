package io.moe4j.api.weights;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import org.junit.jupiter.api.Test;

class MoeLayerWeightsTest {
  private static Tensor zeros(long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    return Tensor.ofFloats(new float[Math.toIntExact(n)], shape);
  }

  private static MoeLayerWeights weights(Tensor w13, Tensor w2) {
    return new MoeLayerWeights(
        ExpertWeights.ofStacked(w13, w2, null, null, true, GateUpLayout.HALVES), null, null, null);
  }

  @Test
  void stackedLayoutsGiveTheSameExperts() {
    float[] halves = {1, 2, 3, 4, 10, 20, 30, 40};
    float[] interleaved = {1, 2, 10, 20, 3, 4, 30, 40};
    ExpertWeights a =
        ExpertWeights.ofStacked(
            Tensor.ofFloats(halves, 1, 4, 2),
            zeros(1, 2, 2),
            null,
            null,
            true,
            GateUpLayout.HALVES);
    ExpertWeights b =
        ExpertWeights.ofStacked(
            Tensor.ofFloats(interleaved, 1, 4, 2),
            zeros(1, 2, 2),
            null,
            null,
            true,
            GateUpLayout.INTERLEAVED);
    assertThat(b.expert(0).up().plain().toFloats()).containsExactly(10, 20, 30, 40);
    assertThat(a.expert(0).up().plain().toFloats()).isEqualTo(b.expert(0).up().plain().toFloats());
    assertThat(requireNonNull(a.expert(0).gate()).plain().toFloats())
        .isEqualTo(requireNonNull(b.expert(0).gate()).plain().toFloats());
  }

  @Test
  void misfitsAreNamed() {
    MoeConfig config = MoeConfig.builder(6, 4, 3, 1).weightDtype(DType.F32).build();
    weights(zeros(3, 8, 6), zeros(3, 6, 4)).requireFits(config);
    assertThatIllegalArgumentException()
        .isThrownBy(() -> weights(zeros(2, 8, 6), zeros(2, 6, 4)).requireFits(config))
        .withMessageContaining("weights hold 2 experts");
    assertThatIllegalArgumentException()
        .isThrownBy(() -> weights(zeros(3, 10, 6), zeros(3, 6, 5)).requireFits(config))
        .withMessageContaining("expert 0 up")
        .withMessageContaining("[4, 6]");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            weights(zeros(3, 8, 6), zeros(3, 6, 4))
                .requireFits(config.toBuilder().weightDtype(DType.BF16).build()))
        .withMessageContaining("weightDtype BF16");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            weights(zeros(3, 8, 6), zeros(3, 6, 4))
                .requireFits(config.toBuilder().expertBias(true).build()))
        .withMessageContaining("lacks a bias");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            weights(zeros(3, 8, 6), zeros(3, 6, 4))
                .requireFits(config.toBuilder().activation(Activation.RELU2_NO_MUL).build()))
        .withMessageContaining("gate");
    assertThatIllegalArgumentException()
        .isThrownBy(() ->
            ExpertWeights.ofStacked(
                zeros(3, 8, 6), zeros(3, 6, 5), null, null, true, GateUpLayout.HALVES))
        .withMessageContaining("down");
  }
}
