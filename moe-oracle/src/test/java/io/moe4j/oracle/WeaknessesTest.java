package io.moe4j.oracle;

import static io.moe4j.oracle.LayerFixture.H;
import static io.moe4j.oracle.LayerFixture.expected;
import static io.moe4j.oracle.LayerFixture.hidden;
import static io.moe4j.oracle.LayerFixture.layer;
import static io.moe4j.oracle.LayerFixture.lora;
import static io.moe4j.oracle.LayerFixture.loraConfig;
import static io.moe4j.oracle.LayerFixture.modular;
import static io.moe4j.oracle.LayerFixture.monolithic;
import static io.moe4j.oracle.LayerFixture.oracle;
import static io.moe4j.oracle.LayerFixture.sharedConfig;
import static io.moe4j.oracle.LayerFixture.weights;
import static io.moe4j.oracle.LayerFixture.zeros;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.catchThrowableOfType;

import ch.qos.logback.classic.Level;
import io.moe4j.api.MoeException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.LoraExperts;
import io.moe4j.api.spi.ModularExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.Tensor;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Random;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/**
 * Weaknesses known of vLLM's backend selection, by number; each test shows that they are not ours.
 * Number 15 is about ranks, which selection never sees: real backends show it among the integration
 * tests, which also try 13, 14, 18 and 19.
 */
class WeaknessesTest {
  private final FakeDevice device = new FakeDevice();

  private static Selection select(
      List<ExpertsBackend> backends, MoeConfig config, Platform platform) {
    return Zoo.oracle(backends).select(config, platform);
  }

  private static UnsupportedConfigException refusal(
      List<ExpertsBackend> backends, MoeConfig config, Platform platform, String... name) {
    MoeOracle oracle = Zoo.oracle(backends);
    return catchThrowableOfType(
        UnsupportedConfigException.class,
        () -> oracle.select(config, platform, name.length == 0 ? null : name[0]));
  }

  private static List<Code> codes(Selection s, String backend) {
    return s.candidate(backend).orElseThrow().support().reasons().stream()
        .map(Support.Reason::code)
        .toList();
  }

  @Test
  @DisplayName("1: LoRA does not skip the check of the activation format")
  void row01() {
    MoeConfig batched = Zoo.loraConfig().activationFormat(ActivationFormat.BATCHED).build();
    UnsupportedConfigException e = refusal(Zoo.all(true, true), batched, Zoo.HOPPER);
    assertThat(codes(e.selection(), "triton")).containsExactly(Code.ACTIVATION_FORMAT);
    assertThat(codes(e.selection(), "batched-triton")).containsExactly(Code.LORA);
    assertThat(e)
        .hasMessageContaining("takes STANDARD activations, the layer has BATCHED")
        .hasMessageContaining("takes no adapters");
  }

  @Test
  @DisplayName("2: the decision is logged with LoRA on as well")
  void row02() {
    try (LogCapture log = new LogCapture(MoeOracle.class)) {
      select(Zoo.all(true, true), Zoo.loraConfig().build(), Zoo.BLACKWELL);
      assertThat(log.at(Level.INFO)).hasSize(1);
      assertThat(log.at(Level.INFO).getFirst())
          .startsWith("Using triton experts backend out of candidates [triton, cpu, reference]")
          .contains("flashinfer-trtllm: takes no adapters");
    }
  }

  @Test
  @DisplayName("3: LoRA does not override an explicit choice")
  void row03() {
    MoeConfig config = Zoo.loraConfig().build();
    UnsupportedConfigException e =
        refusal(Zoo.all(true, true), config, Zoo.BLACKWELL, "flashinfer-cutlass");
    assertThat(e.selection().chosen()).isEmpty();
    assertThat(codes(e.selection(), "flashinfer-cutlass")).containsExactly(Code.LORA);
    Selection cpu = Zoo.oracle(Zoo.all(true, true)).select(config, Zoo.BLACKWELL, "cpu");
    assertThat(cpu.chosenBackend().name()).isEqualTo("cpu");
  }

  @Test
  @DisplayName("4: with LoRA on a backend is asked like without; a processor does not get Triton")
  void row04() {
    List<MoeConfig> asked = new ArrayList<>();
    FakeBackend triton =
        Zoo.triton()
            .support((c, p) -> {
              asked.add(c);
              return Support.no(Code.OTHER, "says no");
            });
    MoeConfig config = Zoo.loraConfig().build();
    Selection s = select(List.of(triton, Zoo.cpuBackend()), config, Zoo.CPU_ONLY);
    assertThat(s.chosenBackend().name()).isEqualTo("cpu");
    assertThat(asked).containsExactly(config);
    assertThat(codes(s, "triton")).containsExactly(Code.DEVICE, Code.OTHER);
  }

  @Test
  @DisplayName("5: quantised weights and LoRA pass every check, and the explicit choice holds")
  void row05() {
    FakeBackend marlin =
        Zoo.marlin()
            .support((c, p) ->
                Support.checks()
                    .require(c.parallel().tpSize() == 1, Code.PARALLEL, () -> "tp size is 2")
                    .require(
                        c.activation().kind() == Activation.Kind.SILU,
                        Code.ACTIVATION,
                        () -> "activation is " + c.activation().kind() + ", takes SILU")
                    .result());
    List<ExpertsBackend> backends = List.of(marlin, Zoo.triton());
    MoeConfig config =
        Zoo.loraConfig()
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .activationFormat(ActivationFormat.BATCHED)
            .parallel(ParallelConfig.tensor(2, 0))
            .build();
    UnsupportedConfigException e = refusal(backends, config, Zoo.HOPPER);
    assertThat(codes(e.selection(), "marlin"))
        .containsExactly(Code.ACTIVATION_FORMAT, Code.PARALLEL, Code.ACTIVATION);
    UnsupportedConfigException explicit = refusal(backends, config, Zoo.HOPPER, "triton");
    assertThat(explicit.selection().chosen()).isEmpty();
    assertThat(codes(explicit.selection(), "triton"))
        .containsExactly(Code.ACTIVATION_FORMAT, Code.QUANTIZATION);
  }

  @Test
  @DisplayName("6: an explicit choice that does not fit is refused, whatever the weights")
  void row06() {
    List<QuantScheme> schemes =
        List.of(
            QuantScheme.NONE,
            QuantScheme.MXFP4,
            QuantScheme.FP8_BLOCK,
            QuantScheme.NVFP4,
            QuantScheme.int4(128));
    for (QuantScheme scheme : schemes) {
      for (MoeConfig config :
          List.of(
              Zoo.config().quantScheme(scheme).build(),
              Zoo.loraConfig().quantScheme(scheme).build())) {
        for (Platform platform : List.of(Zoo.CPU_ONLY, Zoo.TURING)) {
          // The card, or its age, is wrong for Triton; the processor would do.
          UnsupportedConfigException e = refusal(Zoo.all(true, true), config, platform, "triton");
          assertThat(e).as("%s on %s", scheme, platform).isNotNull();
          assertThat(e.selection().chosen()).isEmpty();
          assertThat(e.selection().supported()).isNotEmpty();
        }
      }
    }
  }

  @Test
  @DisplayName("7: demotions are the backends' own answers; the oracle knows no backend by name")
  void row07() {
    MoeConfig tp = Zoo.config().parallel(ParallelConfig.tensor(2, 0)).build();
    Selection s = select(Zoo.all(true, true), tp, Zoo.BLACKWELL);
    assertThat(s.chosenBackend().name()).isEqualTo("triton");
    assertThat(codes(s, "flashinfer-cutlass")).containsExactly(Code.PARALLEL);
    MoeConfig oai = Zoo.config().activation(Activation.SWIGLUOAI).build();
    Selection t = select(Zoo.all(true, true), oai, Zoo.BLACKWELL);
    assertThat(t.chosenBackend().name()).isEqualTo("triton");
    assertThat(codes(t, "flashinfer-trtllm")).containsExactly(Code.ACTIVATION);
    // Names turned around: the same answers under other names give the same order.
    List<FakeBackend> renamed =
        List.of(
            new FakeBackend("triton", DeviceType.CUDA).priority(1),
            new FakeBackend("a", DeviceType.CUDA).priority(3),
            new FakeBackend("flashinfer-trtllm", DeviceType.CUDA).priority(2));
    Selection u = select(List.copyOf(renamed), Zoo.config().build(), Zoo.HOPPER);
    assertThat(u.candidates())
        .extracting(Candidate::name)
        .containsExactly("a", "flashinfer-trtllm", "triton");
  }

  @Test
  @DisplayName("8: the error carries every backend's every reason")
  void row08() {
    List<ExpertsBackend> gpuOnly =
        Zoo.all(false, false).stream().filter(b -> b.deviceType().equals(DeviceType.CUDA)).toList();
    MoeConfig config = Zoo.loraConfig().activation(Activation.SWIGLUOAI).build();
    UnsupportedConfigException e = refusal(gpuOnly, config, Zoo.TURING);
    assertThat(e.selection().candidates()).hasSize(gpuOnly.size());
    assertThat(e.selection().candidates())
        .allSatisfy(c -> {
          assertThat(c.support().reasons()).isNotEmpty();
          assertThat(c.support().reasons())
              .allSatisfy(r -> assertThat(e).hasMessageContaining(r.message()));
        });
    assertThat(codes(e.selection(), "flashinfer-trtllm"))
        .containsExactly(Code.LORA, Code.DRIVER, Code.ACTIVATION);
  }

  @Test
  @DisplayName("9: a backend whose kernel is not there is refused; one that lies fails when built")
  void row09() {
    Selection s = select(Zoo.all(false, true), Zoo.config().build(), Zoo.BLACKWELL);
    assertThat(codes(s, "flashinfer-trtllm")).containsExactly(Code.DRIVER);
    FakeBackend liar =
        new FakeBackend("liar", DeviceType.CPU)
            .prepares((c, w, d) -> {
              throw new UnsatisfiedLinkError("no trtllm_bf16_moe in libflashinfer.so");
            });
    assertThatThrownBy(() -> layer(device, liar, LayerFixture.config().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("backend liar")
        .hasMessageContaining("no trtllm_bf16_moe");
  }

  @Test
  @DisplayName("10: monolithic experts and a shared expert")
  void row10() {
    try (MoeLayer layer = layer(device, monolithic(device), sharedConfig().build())) {
      Tensor output = zeros(2, H);
      layer.forward(hidden(2), output);
      assertThat(output.get(1, 0)).isEqualTo(1 * 4 + 1000);
    }
  }

  @ParameterizedTest(name = "11: monolithic experts are chosen for the routing they know: {0}")
  @EnumSource(RoutingConfig.Scoring.class)
  void row11(RoutingConfig.Scoring scoring) {
    FakeBackend knowsSigmoid =
        new FakeBackend("mono", DeviceType.CUDA)
            .priority(900)
            .support((c, p) ->
                Support.checks()
                    .require(
                        c.routing().scoring() == RoutingConfig.Scoring.SIGMOID,
                        Code.ROUTING,
                        () -> "routing is " + c.routing().scoring() + ", takes SIGMOID")
                    .result());
    MoeConfig config =
        MoeConfig.builder(2048, 1024, 64, 2).routing(RoutingConfig.of(scoring, false)).build();
    Selection s = select(List.of(knowsSigmoid, Zoo.triton()), config, Zoo.BLACKWELL);
    boolean known = scoring == RoutingConfig.Scoring.SIGMOID;
    assertThat(s.chosenBackend().name()).isEqualTo(known ? "mono" : "triton");
    assertThat(codes(s, "mono")).isEqualTo(known ? List.of() : List.of(Code.ROUTING));
  }

  /** Experts behind somebody's wrapper, which also notes what is in slot 0. */
  private record Wrapper(ModularExperts inner, List<LoraLayer> firstSlots)
      implements ModularExperts, LoraExperts {
    @Override
    public long workspaceBytes(int maxTokens) {
      return inner.workspaceBytes(maxTokens);
    }

    @Override
    public void apply(
        ExpertsInputs inputs,
        @Nullable MoeLoraContext lora,
        Workspace workspace,
        DeviceStream stream) {
      if (lora != null) {
        firstSlots.add(lora.slot(0));
      }
      inner.apply(inputs, lora, workspace, stream);
    }

    @Override
    public void close() {
      inner.close();
    }
  }

  @Test
  @DisplayName("12: what experts can do is their type, also behind a wrapper")
  void row12() {
    ModularExperts inner = (ModularExperts) FakeExperts.lora(device);
    FakeBackend wrapping =
        new FakeBackend("wrapping", DeviceType.CPU)
            .withLora()
            .prepares((c, w, d) -> new Wrapper(inner, new ArrayList<>()));
    try (MoeLayer layer = layer(device, wrapping, loraConfig().build())) {
      Tensor output = zeros(2, H);
      layer.forward(MoeForward.of(hidden(2), output).withLora(FakeLora.of(2, -1, 1)));
      assertThat(output.get(1, 0)).isEqualTo(expected(1) + 300);
    }
  }

  @Test
  @DisplayName("13: the quantisation scheme is there for every backend, LoRA or not")
  void row13() {
    List<QuantScheme> seen = new ArrayList<>();
    FakeBackend backend =
        lora(device)
            .support((c, p) -> {
              seen.addAll(c.quantSchemes());
              return Support.yes();
            })
            .prepares((c, w, d) -> {
              seen.addAll(c.quantSchemes());
              return FakeExperts.lora(device);
            });
    QuantScheme blocks = QuantScheme.FP8_BLOCK;
    layer(device, backend, loraConfig().quantScheme(blocks).build()).close();
    layer(device, backend, LayerFixture.config().build()).close();
    assertThat(seen).containsExactly(blocks, blocks, QuantScheme.NONE, QuantScheme.NONE);
  }

  @Test
  @DisplayName("14: expert parallelism and LoRA: the ranks' parts add up to the whole")
  void row14() {
    FakeLora context = FakeLora.of(3, 0, -1, 2, 1, 1);
    Tensor whole = zeros(5, H);
    try (MoeLayer layer = layer(device, lora(device), loraConfig().build())) {
      layer.forward(MoeForward.of(hidden(5), whole).withLora(context));
    }
    for (ActivationFormat format : ActivationFormat.values()) {
      double[] sum = new double[5 * H];
      for (int rank = 0; rank < 2; rank++) {
        MoeConfig c =
            loraConfig().parallel(ParallelConfig.expert(2, rank)).activationFormat(format).build();
        // The fakes multiply by the local index + 1: make that the global one again.
        int offset = 2 * rank;
        FakeBackend backend = lora(device);
        if (format == ActivationFormat.BATCHED) {
          backend.batched();
        }
        try (MoeLayer layer = layer(device, backend, c)) {
          Tensor part = zeros(5, H);
          Tensor ids = LayerFixture.empty(io.moe4j.api.tensor.DType.I32, 5, LayerFixture.K);
          Tensor w = zeros(5, LayerFixture.K);
          layer.forward(MoeForward.of(hidden(5), part).withLora(context).topkInto(ids, w));
          for (int t = 0; t < 5; t++) {
            double localWeights = 0;
            for (int k = 0; k < LayerFixture.K; k++) {
              boolean here = (int) ids.get(t, k) / 2 == rank;
              localWeights += here ? w.get(t, k) : 0;
            }
            for (int h = 0; h < H; h++) {
              sum[t * H + h] += part.get(t, h) + offset * t * localWeights;
            }
          }
        }
      }
      assertThat(sum).as("%s", format).isEqualTo(whole.toDoubles());
    }
  }

  @Test
  @DisplayName("16: selecting and preparing leave the config alone")
  void row16() {
    MoeConfig config = loraConfig().build();
    MoeConfig copy = loraConfig().build();
    List<MoeConfig> seen = new ArrayList<>();
    FakeBackend backend =
        lora(device)
            .prepares((c, w, d) -> {
              seen.add(c);
              return FakeExperts.lora(device);
            });
    try (MoeOracle oracle = oracle(device, backend);
        MoeLayer layer = MoeLayer.builder(config, weights(config)).oracle(oracle).build()) {
      assertThat(layer.config()).isSameAs(config).isEqualTo(copy);
      assertThat(layer.selection().config()).isSameAs(config);
      assertThat(seen).hasSize(1).first().isSameAs(config);
    }
  }

  /**
   * Neither the order in which backends were found nor what was selected before. That selection
   * reads no environment variable and no system property is a rule of the build.
   */
  @Test
  @DisplayName("17: the decision is a function of config, platform and name, nothing else")
  void row17() {
    MoeConfig config = Zoo.loraConfig().build();
    List<ExpertsBackend> backends = new ArrayList<>(Zoo.all(true, true));
    // As good as Triton, by another name.
    backends.add(
        new FakeBackend("twin-of-triton", DeviceType.CUDA)
            .withLora()
            .priority(Zoo.triton().priority(config, Zoo.HOPPER)));
    Selection first = select(backends, config, Zoo.HOPPER);
    assertThat(first.chosenBackend().name()).isIn("triton", "twin-of-triton");
    Random random = new Random(17);
    for (int i = 0; i < 8; i++) {
      Collections.shuffle(backends, random);
      MoeOracle oracle = Zoo.oracle(backends);
      for (Platform other : List.of(Zoo.CPU_ONLY, Zoo.BLACKWELL)) {
        oracle.select(config, other, "cpu");
      }
      Selection again = oracle.select(config, Zoo.HOPPER);
      assertThat(again.summary()).isEqualTo(first.summary());
      assertThat(again.candidates())
          .extracting(Candidate::name)
          .isEqualTo(first.candidates().stream().map(Candidate::name).toList());
    }
  }

  @Test
  @DisplayName("18: a claim of LoRA without the hooks for it fails when the layer is built")
  void row18() {
    assertThatThrownBy(() -> layer(device, modular(device).withLora(), loraConfig().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("is not LoraExperts");
    FakeBackend mono = monolithic(device).withLora();
    assertThatThrownBy(() -> layer(device, mono, loraConfig().build()))
        .isInstanceOf(MoeException.class)
        .hasMessageContaining("is not LoraExperts");
  }

  @Test
  @DisplayName("19: router weight on input reaches the backend's answer and its experts unchanged")
  void row19() {
    FakeBackend outputOnly =
        Zoo.triton()
            .support((c, p) ->
                Support.checks()
                    .require(
                        !c.routerWeightOnInput(),
                        Code.ROUTER_WEIGHT_ON_INPUT,
                        () -> "router weight is on the input, takes it on the output")
                    .result());
    MoeConfig config = Zoo.loraConfig().routerWeightOnInput(true).build();
    Selection s = select(List.of(outputOnly, Zoo.cpuBackend()), config, Zoo.HOPPER);
    assertThat(s.chosenBackend().name()).isEqualTo("cpu");
    assertThat(codes(s, "triton")).containsExactly(Code.ROUTER_WEIGHT_ON_INPUT);
  }
}
