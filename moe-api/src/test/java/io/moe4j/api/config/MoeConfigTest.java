package io.moe4j.api.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalArgumentException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.tensor.DType;
import java.lang.reflect.Method;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;
import java.util.function.UnaryOperator;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

class MoeConfigTest {
  /** One setting off its default, and how it is read back. */
  private record Setting(
      String name,
      UnaryOperator<MoeConfig.Builder> set,
      Function<MoeConfig, Object> get,
      Object is) {
    @Override
    public String toString() {
      return name;
    }
  }

  private record SomeOptions(String backend) implements BackendOptions {}

  static List<Setting> settings() {
    SomeOptions options = new SomeOptions("some");
    RoutingConfig routing = RoutingConfig.deepseekV3(4, 2, true, 2.5f);
    SharedExpertConfig shared = new SharedExpertConfig(64, Activation.SILU, true);
    ParallelConfig parallel = ParallelConfig.expert(3, 1);
    ExpertMap map = ExpertMap.of(IntStream.range(0, 16).map(i -> 15 - i).toArray());
    LoraConfig lora = new LoraConfig(8, 64);
    List<QuantScheme> mixed = List.of(QuantScheme.MXFP4, QuantScheme.NONE);
    return List.of(
        new Setting(
            "activation",
            b -> b.activation(Activation.SWIGLUOAI),
            MoeConfig::activation,
            Activation.SWIGLUOAI),
        new Setting("routing", b -> b.routing(routing), MoeConfig::routing, routing),
        new Setting("inputDtype", b -> b.inputDtype(DType.BF16), MoeConfig::inputDtype, DType.BF16),
        new Setting(
            "weightDtype", b -> b.weightDtype(DType.F16), MoeConfig::weightDtype, DType.F16),
        new Setting(
            "quantScheme",
            b -> b.quantScheme(QuantScheme.MXFP4),
            MoeConfig::quantSchemes,
            List.of(QuantScheme.MXFP4)),
        new Setting("quantSchemes", b -> b.quantSchemes(mixed), MoeConfig::quantSchemes, mixed),
        new Setting(
            "quantizedActivations",
            b -> b.quantizedActivations(true),
            MoeConfig::quantizedActivations,
            true),
        new Setting("expertBias", b -> b.expertBias(true), MoeConfig::expertBias, true),
        new Setting(
            "routerWeightOnInput",
            b -> b.routerWeightOnInput(true),
            MoeConfig::routerWeightOnInput,
            true),
        new Setting("latentSize", b -> b.latentSize(32), MoeConfig::latentSize, 32),
        new Setting(
            "sharedExpert",
            b -> b.sharedExpert(shared),
            MoeConfig::sharedExpert,
            Optional.of(shared)),
        new Setting("expertMap", b -> b.expertMap(map), MoeConfig::expertMap, Optional.of(map)),
        new Setting("intermediateSize", b -> b.intermediateSize(3), MoeConfig::intermediateSize, 3),
        new Setting(
            "placement",
            b -> b.placement(ExpertPlacement.of(List.of(map))),
            MoeConfig::placement,
            Optional.of(ExpertPlacement.of(List.of(map)))),
        new Setting("lora", b -> b.lora(lora), MoeConfig::lora, Optional.of(lora)),
        new Setting(
            "activationFormat",
            b -> b.activationFormat(ActivationFormat.BATCHED),
            MoeConfig::activationFormat,
            ActivationFormat.BATCHED),
        new Setting("parallel", b -> b.parallel(parallel), MoeConfig::parallel, parallel),
        new Setting("maxTokens", b -> b.maxTokens(77), MoeConfig::maxTokens, 77),
        new Setting("zeroExperts", b -> b.zeroExperts(2), MoeConfig::zeroExperts, 2),
        new Setting(
            "inputNorm",
            b -> b.inputNorm(new RmsNorm(1e-5f)),
            MoeConfig::inputNorm,
            Optional.of(new RmsNorm(1e-5f))),
        new Setting("outputBias", b -> b.outputBias(true), MoeConfig::outputBias, true),
        new Setting("options", b -> b.options(options), MoeConfig::options, List.of(options)),
        new Setting(
            "batchInvariant", b -> b.batchInvariant(true), MoeConfig::batchInvariant, true));
  }

  private static MoeConfig.Builder defaults() {
    return MoeConfig.builder(128, 96, 16, 4);
  }

  @ParameterizedTest
  @MethodSource("settings")
  void settingIsKeptCopiedAndCompared(Setting setting) {
    MoeConfig config = setting.set.apply(defaults()).build();
    assertThat(setting.get.apply(defaults().build())).isNotEqualTo(setting.is);
    assertThat(setting.get.apply(config)).isEqualTo(setting.is);
    MoeConfig copy = config.toBuilder().build();
    assertThat(setting.get.apply(copy)).isEqualTo(setting.is);
    assertThat(copy).isEqualTo(config).hasSameHashCodeAs(config);
    assertThat(config).isNotEqualTo(defaults().build());
  }

  @Test
  void everySettingOfTheBuilderIsTried() {
    List<String> setters =
        Arrays.stream(MoeConfig.Builder.class.getMethods())
            .filter(m -> m.getReturnType() == MoeConfig.Builder.class && m.getParameterCount() == 1)
            .map(Method::getName)
            .toList();
    assertThat(settings()).extracting(Setting::name).containsExactlyInAnyOrderElementsOf(setters);
  }

  @Test
  void aProductMayHaveSchemesOfItsOwn() {
    QuantScheme int4 = QuantScheme.int4(128);
    QuantScheme fp8 = QuantScheme.FP8_BLOCK;
    MoeConfig config = defaults().quantSchemes(List.of(int4, int4), List.of(fp8)).build();
    assertThat(config.quantSchemes()).containsExactly(int4, fp8);
    assertThat(config.w13Schemes()).containsExactly(int4);
    assertThat(config.w2Schemes()).containsExactly(fp8);
    assertThat(config.uniformScheme()).isEmpty();
    assertThat(config.uniformW13Scheme()).hasValue(int4);
    assertThat(config.uniformW2Scheme()).hasValue(fp8);
    assertThat(config.toBuilder().build()).isEqualTo(config).hasSameHashCodeAs(config);
    MoeConfig anywhere = defaults().quantSchemes(List.of(int4, fp8)).build();
    assertThat(anywhere).isNotEqualTo(config);
    assertThat(anywhere.quantSchemes()).isEqualTo(config.quantSchemes());
    assertThat(anywhere.uniformW13Scheme()).isEmpty();
    assertThat(anywhere.uniformW2Scheme()).isEmpty();
    assertThat(config.toString()).contains("w13 [int4 group 128], w2 [fp8 block 128x128");
    assertThat(config.toBuilder().quantScheme(int4).build().uniformScheme()).hasValue(int4);
    QuantScheme tuned = fp8.toBuilder().activations(ActivationQuant.FP8_PER_BLOCK).build();
    MoeConfig both = defaults().quantSchemes(List.of(int4), List.of(fp8, tuned)).build();
    assertThat(both.uniformW2Scheme()).hasValue(fp8);
    assertThat(both.toBuilder().quantizedActivations(true).build().uniformW2Scheme()).isEmpty();
    assertThatThrownBy(() -> defaults().quantSchemes(List.of(int4), List.of()).build())
        .hasMessageContaining("must name at least one scheme");
  }

  @Test
  void sizesAreKeptCopiedAndCompared() {
    MoeConfig config = defaults().build();
    assertThat(List.of(config.hiddenSize(), config.intermediateSize())).isEqualTo(List.of(128, 96));
    assertThat(List.of(config.numExperts(), config.topK())).isEqualTo(List.of(16, 4));
    assertThat(config.toBuilder().build()).isEqualTo(config);
    assertThat(config)
        .isNotEqualTo(MoeConfig.builder(129, 96, 16, 4).build())
        .isNotEqualTo(MoeConfig.builder(128, 97, 16, 4).build())
        .isNotEqualTo(MoeConfig.builder(128, 96, 17, 4).build())
        .isNotEqualTo(MoeConfig.builder(128, 96, 16, 5).build());
  }

  @Test
  void sizesFollowFromRanksAndLatent() {
    MoeConfig config = defaults().parallel(ParallelConfig.expert(3, 1)).latentSize(32).build();
    assertThat(config.numLocalExperts()).isEqualTo(5);
    assertThat(config.expertHiddenSize()).isEqualTo(32);
    assertThat(defaults().build().expertHiddenSize()).isEqualTo(128);
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
