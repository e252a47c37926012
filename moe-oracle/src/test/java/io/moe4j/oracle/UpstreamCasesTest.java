package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/** The selection cases that vLLM tests for unquantised experts, in this project's terms. */
class UpstreamCasesTest {
  private static String choose(List<ExpertsBackend> backends, MoeConfig config, Platform platform) {
    return choose(backends, config, platform, null);
  }

  private static String choose(
      List<ExpertsBackend> backends, MoeConfig config, Platform platform, @Nullable String name) {
    try (MoeOracle oracle = Zoo.oracle(backends)) {
      return oracle.select(config, platform, name).chosenBackend().name();
    }
  }

  static Stream<Arguments> platforms() {
    return Stream.of(
        Arguments.of(Zoo.HOPPER, "triton"),
        Arguments.of(Zoo.with(DeviceType.ROCM), "triton-rocm"),
        Arguments.of(Zoo.CPU_ONLY, "cpu"),
        Arguments.of(Zoo.with(DeviceType.XPU), "xpu"),
        Arguments.of(Zoo.with(DeviceType.TPU), "tpu"),
        Arguments.of(Zoo.with(new DeviceType("npu")), "npu-vendor"));
  }

  @ParameterizedTest
  @MethodSource("platforms")
  void eachPlatformHasItsBackendWhereFlashInferIsAbsent(Platform platform, String expected) {
    assertThat(choose(Zoo.all(false, false), Zoo.config().build(), platform)).isEqualTo(expected);
  }

  @Test
  @DisplayName("ROCm with AITER there: AITER")
  void aiterWhereItIsEnabled() {
    List<ExpertsBackend> backends = new ArrayList<>(Zoo.all(false, false));
    backends.add(Zoo.onlyOn("aiter", DeviceType.ROCM).priority(700));
    assertThat(choose(backends, Zoo.config().build(), Zoo.with(DeviceType.ROCM)))
        .isEqualTo("aiter");
  }

  @Test
  void trtllmWithExpertParallelismAndWithoutDataParallelism() {
    assertThat(choose(Zoo.all(true, true), Zoo.epConfig().build(), Zoo.BLACKWELL))
        .isEqualTo("flashinfer-trtllm");
  }

  @Test
  void cutlassWhereTrtllmIsNotThere() {
    assertThat(choose(Zoo.all(false, true), Zoo.config().build(), Zoo.BLACKWELL))
        .isEqualTo("flashinfer-cutlass");
  }

  @Test
  void tunedKernelsThatAreSlowerOnHopperStandBehindTritonThere() {
    assertThat(choose(Zoo.all(true, true), Zoo.config().build(), Zoo.HOPPER)).isEqualTo("triton");
  }

  @Test
  void loraChoosesTriton() {
    assertThat(choose(Zoo.all(true, true), Zoo.loraConfig().build(), Zoo.BLACKWELL))
        .isEqualTo("triton");
  }

  @Test
  @DisplayName("LoRA and an explicit flashinfer-cutlass: refused, where upstream took Triton")
  void loraDoesNotOverrideAnExplicitChoice() {
    MoeConfig config = Zoo.loraConfig().build();
    assertThatThrownBy(
            () -> choose(Zoo.all(true, true), config, Zoo.BLACKWELL, "flashinfer-cutlass"))
        .isInstanceOf(UnsupportedConfigException.class)
        .hasMessageContaining("flashinfer-cutlass")
        .hasMessageContaining("takes no adapters");
  }

  @Test
  void explicitTritonWithAndWithoutLora() {
    for (MoeConfig config : List.of(Zoo.config().build(), Zoo.loraConfig().build())) {
      // FlashInfer is there and would win on this card: upstream's environment variables.
      assertThat(choose(Zoo.all(true, true), config, Zoo.BLACKWELL, "triton")).isEqualTo("triton");
    }
  }

  @Test
  @DisplayName("not covered upstream: batched format and LoRA")
  void batchedAndLora() {
    MoeConfig config = Zoo.loraConfig().activationFormat(ActivationFormat.BATCHED).build();
    assertThatThrownBy(() -> choose(Zoo.all(true, true), config, Zoo.HOPPER))
        .isInstanceOfSatisfying(
            UnsupportedConfigException.class,
            e -> {
              assertThat(codes(e.selection(), "triton"))
                  .containsExactly(Support.Code.ACTIVATION_FORMAT);
              assertThat(codes(e.selection(), "batched-triton")).containsExactly(Support.Code.LORA);
            });
    List<ExpertsBackend> withOne = Zoo.all(true, true);
    withOne.add(new FakeBackend("batched-lora", DeviceType.CUDA).batched().withLora().priority(1));
    assertThat(choose(withOne, config, Zoo.HOPPER)).isEqualTo("batched-lora");
  }

  @Test
  @DisplayName("not covered upstream: CPU and LoRA, XPU and LoRA")
  void loraOnOtherPlatforms() {
    MoeConfig config = Zoo.loraConfig().build();
    assertThat(choose(Zoo.all(true, true), config, Zoo.CPU_ONLY)).isEqualTo("cpu");
    // The xpu backend takes no adapters; the processor of that machine does.
    assertThat(choose(Zoo.all(true, true), config, Zoo.with(DeviceType.XPU))).isEqualTo("cpu");
  }

  @Test
  @DisplayName("not covered upstream: EP and LoRA")
  void expertParallelismAndLora() {
    assertThat(
            choose(
                Zoo.all(true, true),
                Zoo.epConfig().lora(new LoraConfig(8, 64)).build(),
                Zoo.HOPPER))
        .isEqualTo("triton");
  }

  private static List<Support.Code> codes(Selection s, String backend) {
    return s.candidate(backend).orElseThrow().support().reasons().stream()
        .map(Support.Reason::code)
        .toList();
  }
}
