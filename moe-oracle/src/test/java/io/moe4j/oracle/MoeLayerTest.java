package io.moe4j.oracle;

import static io.moe4j.oracle.LayerFixture.E;
import static io.moe4j.oracle.LayerFixture.H;
import static io.moe4j.oracle.LayerFixture.K;
import static io.moe4j.oracle.LayerFixture.config;
import static io.moe4j.oracle.LayerFixture.empty;
import static io.moe4j.oracle.LayerFixture.expected;
import static io.moe4j.oracle.LayerFixture.hidden;
import static io.moe4j.oracle.LayerFixture.layer;
import static io.moe4j.oracle.LayerFixture.lora;
import static io.moe4j.oracle.LayerFixture.loraConfig;
import static io.moe4j.oracle.LayerFixture.modular;
import static io.moe4j.oracle.LayerFixture.monolithic;
import static io.moe4j.oracle.LayerFixture.sharedConfig;
import static io.moe4j.oracle.LayerFixture.weights;
import static io.moe4j.oracle.LayerFixture.zeros;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What runs, in which order, over which tensors. */
class MoeLayerTest {
  private final FakeDevice device = new FakeDevice();

  private static void assertRows(Tensor output, double... rows) {
    for (int t = 0; t < rows.length; t++) {
      for (int h = 0; h < output.size(1); h++) {
        assertThat(output.get(t, h)).as("row %d column %d", t, h).isEqualTo(rows[t]);
      }
    }
  }

  private List<String> steps() {
    List<String> steps =
        device.events.stream()
            .map(e -> e.substring(0, e.indexOf(' ')))
            .filter(e -> !e.equals("open") && !e.equals("copy"))
            .toList();
    device.events.clear();
    return steps;
  }

  @Test
  void standardExpertsWriteStraightIntoTheOutput() {
    try (MoeLayer layer = layer(device, modular(device), config().build())) {
      Tensor output = zeros(3, H);
      layer.forward(hidden(3), output);
      assertRows(output, expected(0), expected(1), expected(2));
      assertThat(device.events)
          .contains("apply F32[3, 4] -> F32[3, 4] on host stream")
          .noneMatch(e -> e.startsWith("finish"));
      assertThat(steps()).containsExactly("routerLogits", "route", "apply");
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"F32", "BF16", "F16"})
  void outputHasAnyFloatDtype(String dtype) {
    for (MoeConfig c : List.of(config().build(), sharedConfig().build())) {
      try (MoeLayer layer = layer(device, modular(device), c)) {
        Tensor output = empty(DType.valueOf(dtype), 3, H);
        layer.forward(hidden(3), output);
        double shared = c.sharedExpert().isPresent() ? 1000 : 0;
        // BF16 has 8 bits: compare with what it makes of the sum.
        Tensor sums = empty(DType.valueOf(dtype), 3);
        for (int t = 0; t < 3; t++) {
          sums.set(expected(t) + shared, t);
        }
        assertRows(output, sums.toDoubles());
      }
    }
  }

  @Test
  void sharedExpertIsAddedToAnF32SumAndRoundedOnce() {
    try (MoeLayer layer = layer(device, modular(device), sharedConfig().build())) {
      layer.forward(hidden(2), empty(DType.BF16, 2, H));
      assertThat(device.events)
          .contains(
              "apply F32[2, 4] -> F32[2, 4] on host stream",
              "finish F32[2, 4] -> BF16[2, 4] on host stream");
    }
  }

  @Test
  void monolithicExpertsKeepTheSharedExpert() {
    try (MoeLayer layer = layer(device, monolithic(device), sharedConfig().build())) {
      Tensor output = zeros(2, H);
      layer.forward(hidden(2), output);
      // Best experts of rows 0 and 1 are 0 and 3.
      assertRows(output, 0 * 1 + 1000, 1 * 4 + 1000);
      assertThat(steps()).containsExactly("routerLogits", "monolithic", "finish");
    }
  }

  @Test
  void monolithicExpertsShowTheChoiceToWhoAsks() {
    try (MoeLayer layer = layer(device, monolithic(device), config().build())) {
      Tensor ids = empty(DType.I32, 2, K);
      Tensor w = zeros(2, K);
      layer.forward(MoeForward.of(hidden(2), zeros(2, H)).topkInto(ids, w));
      assertThat(ids.toInts()).containsExactly(0, 1, 3, 0);
      assertThat(steps()).containsExactly("routerLogits", "route", "monolithic");
    }
  }

  @Test
  void monolithicExpertsGetTheCorrectionBiasInF32() {
    MoeConfig c = config().routing(RoutingConfig.deepseekV3(2, 1, true, 1f)).build();
    try (MoeLayer layer = layer(device, monolithic(device), c)) {
      layer.forward(hidden(1), zeros(1, H));
      assertThat(device.events).contains("copy F32[4]", "monolithic F32[1, 4] bias F32[4]");
    }
  }

  @Test
  void monolithicExpertsCannotTakeTopkIds() {
    try (MoeLayer layer = layer(device, monolithic(device), config().build())) {
      MoeForward f =
          MoeForward.of(hidden(1), zeros(1, H)).withTopk(empty(DType.I32, 1, K), zeros(1, K));
      assertThatThrownBy(() -> layer.forward(f))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("backend mono")
          .hasMessageContaining("choose a modular backend");
    }
  }

  @Test
  void batchedExpertsGiveTheSameThroughDispatchAndCombine() {
    MoeConfig c =
        config()
            .activationFormat(ActivationFormat.BATCHED)
            .parallel(ParallelConfig.expert(2, 0))
            .expertMap(ExpertMap.of(0, -1, 1, 2))
            .build();
    Tensor batched = zeros(5, H);
    try (MoeLayer layer = layer(device, modular(device).batched(), c)) {
      layer.forward(hidden(5), batched);
      assertThat(device.events).contains("apply F32[3, 5, 4] -> F32[3, 5, 4] on host stream");
      assertThat(steps()).containsExactly("routerLogits", "route", "dispatch", "apply", "combine");
    }
    MoeConfig s = c.toBuilder().activationFormat(ActivationFormat.STANDARD).build();
    Tensor standard = zeros(5, H);
    try (MoeLayer layer = layer(device, modular(device), s)) {
      layer.forward(hidden(5), standard);
    }
    assertThat(batched.toFloats()).isEqualTo(standard.toFloats());
    assertThat(batched.get(4, 0)).isNotZero();
  }

  @Test
  void batchedExpertsRoundOnceForANarrowOutput() {
    MoeConfig c =
        config().activationFormat(ActivationFormat.BATCHED).inputDtype(DType.BF16).build();
    try (MoeLayer layer = layer(device, modular(device).batched(), c)) {
      Tensor x = empty(DType.BF16, 1, H);
      Tensor output = empty(DType.BF16, 1, H);
      layer.forward(x, output);
      assertThat(device.events)
          .contains(
              "apply BF16[4, 1, 4] -> F32[4, 1, 4] on host stream",
              "combine F32[1, 4] on host stream",
              "finish F32[1, 4] -> BF16[1, 4] on host stream");
    }
  }

  @Test
  void batchedExpertsGetTheSlotOfEachRow() {
    MoeConfig c = loraConfig().activationFormat(ActivationFormat.BATCHED).build();
    Tensor batched = zeros(4, H);
    FakeLora context = FakeLora.of(3, 0, -1, 2, 1);
    try (MoeLayer layer = layer(device, lora(device).batched(), c)) {
      layer.forward(MoeForward.of(hidden(4), batched).withLora(context));
      assertThat(device.events)
          .contains("apply F32[4, 4, 4] -> F32[4, 4, 4] lora I32[4, 4] on host stream");
    }
    // Weights 1 and 1/2 of the slot's 100 * (s + 1).
    assertRows(batched, expected(0) + 150, expected(1), expected(2) + 450, expected(3) + 300);
  }

  @Test
  void latentExpertsReadTheProjectionInF32() {
    MoeConfig c = config().latentSize(2).inputDtype(DType.BF16).build();
    Tensor x = empty(DType.BF16, 2, H);
    x.set(1, 1, 0);
    x.set(1, 1, 1);
    Tensor output = zeros(2, H);
    try (MoeLayer layer = layer(device, modular(device), c)) {
      layer.forward(x, output);
      assertThat(device.events).contains("apply F32[2, 2] -> F32[2, 2] on host stream");
      assertThat(steps()).containsExactly("routerLogits", "latentIn", "route", "apply", "finish");
    }
    assertThat(output.get(1, 0)).isEqualTo(2 * expected(1));
    assertThat(output.get(1, 2)).isZero();
  }

  @Test
  void expertMapIsUploadedOnceAndReachesTheExperts() {
    MoeConfig c =
        config()
            .parallel(ParallelConfig.expert(2, 0))
            .expertMap(ExpertMap.of(-1, 0, -1, -1))
            .build();
    try (MoeLayer layer = layer(device, modular(device), c)) {
      Tensor output = zeros(4, H);
      layer.forward(hidden(4), output);
      layer.forward(hidden(4), output);
      // Row t chooses -t and -t + 1: only expert 1 is here, the first choice of 3, the second of 0.
      assertRows(output, 0 * 0.5, 0, 0, 3);
      assertThat(device.events.stream().filter(e -> e.startsWith("copy"))).hasSize(1);
    }
  }

  @Test
  void callersLogitsReplaceTheRouter() {
    try (MoeLayer layer = layer(device, modular(device), config().build())) {
      Tensor logits = zeros(1, E);
      logits.set(5, 0, 2);
      logits.set(4, 0, 3);
      Tensor output = zeros(1, H);
      Tensor x = hidden(2).narrow(0, 1, 1);
      layer.forward(MoeForward.of(x, output).withRouterLogits(logits));
      assertRows(output, 3 + 0.5 * 4);
      assertThat(steps()).containsExactly("route", "apply");
    }
  }

  @Test
  void callersRoutingReplacesBoth() {
    try (MoeLayer layer = layer(device, modular(device), config().build())) {
      Tensor output = zeros(1, H);
      Tensor x = hidden(2).narrow(0, 1, 1);
      layer.forward(
          MoeForward.of(x, output)
              .withTopk(
                  Tensor.ofInts(new int[] {3, -1}, 1, K),
                  Tensor.ofFloats(new float[] {2, 7}, 1, K)));
      assertRows(output, 2 * 4);
      assertThat(steps()).containsExactly("apply");
    }
  }

  @Test
  void choiceAndLogitsAreWrittenForWhoAsks() {
    try (MoeLayer layer = layer(device, modular(device), config().build())) {
      Tensor ids = empty(DType.I32, 2, K);
      Tensor w = zeros(2, K);
      Tensor logits = zeros(2, E);
      layer.forward(MoeForward.of(hidden(2), zeros(2, H)).topkInto(ids, w).logitsInto(logits));
      assertThat(ids.toInts()).containsExactly(0, 1, 3, 0);
      assertThat(w.toFloats()).containsExactly(1f, 0.5f, 1f, 0.5f);
      assertThat(logits.toFloats()).containsExactly(0, -1, -2, -3, -1, -2, -3, 0);
    }
  }

  @Test
  void moreTokensThanTheMaximumRunInPieces() {
    MoeConfig c = loraConfig().maxTokens(4).build();
    int[] mapping = {-1, 0, 1, 2, -1, 0, 1, 2, -1, 0};
    Tensor output = zeros(10, H);
    Tensor ids = empty(DType.I32, 10, K);
    Tensor w = zeros(10, K);
    Tensor logits = zeros(10, E);
    try (MoeLayer layer = layer(device, lora(device), c)) {
      layer.forward(
          MoeForward.of(hidden(10), output)
              .withLora(FakeLora.of(3, mapping))
              .topkInto(ids, w)
              .logitsInto(logits));
      assertThat(device.events)
          .contains(
              "apply F32[4, 4] -> F32[4, 4] lora I32[4] on host stream",
              "apply F32[2, 4] -> F32[2, 4] lora I32[2] on host stream");
      assertThat(steps())
          .containsExactly(
              "routerLogits",
              "route",
              "apply",
              "routerLogits",
              "route",
              "apply",
              "routerLogits",
              "route",
              "apply");
    }
    for (int t = 0; t < 10; t++) {
      assertThat(output.get(t, 1)).isEqualTo(expected(t) + 150.0 * (mapping[t] + 1));
      assertThat(ids.get(t, 0)).isEqualTo(Math.floorMod(-t, E));
      assertThat(w.get(t, 1)).isEqualTo(0.5);
      assertThat(logits.get(t, 0)).isEqualTo(-(t % E));
    }
  }

  @Test
  void noTokensRunNothing() {
    try (MoeLayer layer = layer(device, lora(device), loraConfig().build())) {
      device.events.clear();
      layer.forward(MoeForward.of(zeros(0, H), zeros(0, H)).withLora(FakeLora.of(3)));
      assertThat(device.events).isEmpty();
      assertThat(device.allocations).hasValue(0);
    }
  }

  @Test
  void batchWithoutAdaptersTakesTheBasePath() {
    try (MoeLayer layer = layer(device, lora(device), loraConfig().build())) {
      FakeLora none = new FakeLora(List.of(), Tensor.ofInts(new int[] {-1, -1}, 2), false);
      layer.forward(MoeForward.of(hidden(2), zeros(2, H)).withLora(none));
      assertThat(device.events).contains("apply F32[2, 4] -> F32[2, 4] on host stream");
    }
  }

  @Test
  void layerWithoutRouterNeedsLogitsOrRouting() {
    MoeConfig c = config().build();
    var all = weights(c);
    var bare = new io.moe4j.api.weights.MoeLayerWeights(all.experts(), null, null, null);
    try (MoeOracle oracle = LayerFixture.oracle(device, modular(device));
        MoeLayer layer = MoeLayer.builder(c, bare).oracle(oracle).build()) {
      assertThatThrownBy(() -> layer.forward(hidden(1), zeros(1, H)))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("no router");
      layer.forward(MoeForward.of(hidden(1), zeros(1, H)).withRouterLogits(zeros(1, E)));
    }
  }
}
