package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * The CPU backend with each set of kernels, forced by its property: models with adapters, biases
 * and shared experts, plain and in the codes of every family, against what was recorded. A set that
 * the machine lacks is skipped by name. One batch and one layer a time, so that all sets together
 * take seconds; {@link GoldenTest} has every model for the set that the machine takes by itself.
 */
class ForcedPathsTest {
  private static final String NATIVE = "moe4j.cpu.native";
  private static final String SCALAR = "moe4j.cpu.scalar";

  private static final List<String> MODELS =
      List.of(
          "fixtures/olmoe",
          "fixtures/gpt_oss",
          "fixtures/deepseek_v3",
          "quantised/awq4_g64",
          "quantised/gptq4_asym_desc_g32",
          "quantised/fp8_block128",
          "quantised/nvfp4_ct",
          "families/gpt_oss_mxfp4");

  @AfterEach
  void forget() {
    System.clearProperty(NATIVE);
    System.clearProperty(SCALAR);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {"amx", "avx512bf16", "avx512", "avx2", "neonbf16", "neon", "vector", "scalar"})
  void recordedOutputs(String kernels) {
    if (kernels.equals("scalar")) {
      System.setProperty(SCALAR, "true");
    } else {
      System.setProperty(NATIVE, kernels.equals("vector") ? "off" : kernels);
    }
    String description = new CpuExpertsBackend().description();
    assumeTrue(
        !description.contains("does not offer"), () -> "kernels " + kernels + ": " + description);
    assumeTrue(
        description.contains("C kernels") || kernels.equals("vector") || kernels.equals("scalar"),
        () -> "kernels " + kernels + ": " + description);
    for (String name : MODELS) {
      check(name, kernels);
    }
  }

  private static void check(String name, String kernels) {
    try (Fixture fixture = Fixture.open(name);
        MoeOracle oracle =
            MoeOracle.of(
                BackendCatalog.of(
                    List.of(new CpuExpertsBackend()),
                    List.of(new CpuDeviceProvider()),
                    List.of(new CpuBlockOpsProvider())))) {
      assertThat(fixture.checkpoint.layers()).isNotEmpty();
      int index = fixture.checkpoint.layers().getLast();
      MoeConfig config = fixture.config(index);
      try (MoeLayer layer =
          MoeLayer.builder(config, fixture.checkpoint.weights(index)).oracle(oracle).build()) {
        LayerCheck.exact(fixture, index, kernels + ", " + name).all(layer);
      }
    }
  }
}
