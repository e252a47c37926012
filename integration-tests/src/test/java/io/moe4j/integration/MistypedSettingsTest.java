package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.Selection;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Settings that belong to all backends of a kind of device: mistyped, they are a reason in each
 * row, and nothing of that device is chosen. No card is needed.
 */
class MistypedSettingsTest {
  private static final Platform H200 = Platform.of(DeviceInfo.cuda(0, "NVIDIA H200", 9, 0));
  private static final MoeConfig PLAIN =
      MoeConfig.builder(128, 64, 8, 2).inputDtype(DType.BF16).weightDtype(DType.BF16).build();
  private static final MoeConfig WITH_LORA = PLAIN.toBuilder().lora(new LoraConfig(2, 16)).build();

  private static void rows(MoeConfig config, String property, String given, Support.Reason reason) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      assertThat(oracle.evaluate(config, H200).explain()).doesNotContain(reason.message());
      System.setProperty(property, given);
      Selection answer = oracle.evaluate(config, H200);
      List<Support> onCuda =
          answer.candidates().stream()
              .filter(c -> c.backend().deviceType().equals(DeviceType.CUDA))
              .map(c -> c.support())
              .toList();
      assertThat(onCuda).hasSizeGreaterThanOrEqualTo(4);
      assertThat(onCuda).allSatisfy(s -> assertThat(s.reasons()).contains(reason));
      assertThat(answer.explain()).contains(reason.message());
    } finally {
      System.clearProperty(property);
    }
  }

  @ParameterizedTest
  @CsvSource({"maybe", "0", "off"})
  void programmaticLaunches(String given) {
    rows(
        PLAIN,
        "moe4j.cuda.pdl",
        given,
        new Support.Reason(
            Support.Code.OTHER, "-Dmoe4j.cuda.pdl is \"" + given + "\", accepted: true, false"));
  }

  @Test
  void thePathOfDeltas() {
    rows(
        WITH_LORA,
        "moe4j.lora.cuda.path",
        "fastest",
        new Support.Reason(
            Support.Code.LORA,
            "-Dmoe4j.lora.cuda.path is \"fastest\", accepted: auto, one-shot, small-batch,"
                + " two-kernels, general"));
  }

  @Test
  void thePathOfDeltasIsNoMatterWithoutAdapters() {
    try (MoeOracle oracle = MoeOracle.discover()) {
      System.setProperty("moe4j.lora.cuda.path", "fastest");
      assertThat(oracle.evaluate(PLAIN, H200).explain()).doesNotContain("moe4j.lora.cuda.path");
    } finally {
      System.clearProperty("moe4j.lora.cuda.path");
    }
  }
}
