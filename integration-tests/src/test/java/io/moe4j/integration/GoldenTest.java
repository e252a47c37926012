package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.DynamicContainer.dynamicContainer;
import static org.junit.jupiter.api.DynamicTest.dynamicTest;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.MonolithicExperts;
import io.moe4j.api.spi.Support;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.backend.cpu.reference.BatchedCpuReferenceBackend;
import io.moe4j.backend.cpu.reference.CpuReferenceBackend;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.DynamicContainer;
import org.junit.jupiter.api.DynamicNode;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/**
 * What transformers and PEFT computed, through the library's own path: checkpoint, PEFT loader,
 * registry, oracle, layer. Every model, MoE layer, adapter and mixed batch, on every CPU backend,
 * in f32 (weights bf16 as in the files).
 *
 * <p>The composable backends know LoRA only by the default methods of {@link
 * io.moe4j.api.spi.LoraExperts} and the CPU punica wrapper: that they meet the same numbers as the
 * backends that fuse shows that both ways are one.
 *
 * <p>The monolithic one routes by itself: shared experts, latent projections and adapters of all of
 * them through a layer.
 */
class GoldenTest {
  private static final String AS_QUANTISED = ".actquant";

  private static final List<ExpertsBackend> BACKENDS =
      List.of(
          new CpuExpertsBackend(),
          new CpuReferenceBackend(),
          new BatchedCpuReferenceBackend(),
          new ComposableBackend(GateUpLayout.HALVES, false),
          new ComposableBackend(GateUpLayout.INTERLEAVED, true),
          new MonolithicBackend());

  @Test
  void theModelsAreHere() {
    assertThat(Fixture.names())
        .contains(
            "fixtures/deepseek_v3",
            "fixtures/gpt_oss",
            "fixtures/mixtral",
            "fixtures/olmoe",
            "fixtures/qwen3_moe",
            "families/deepseek_v4",
            "families/gemma4",
            "families/gpt_oss_mxfp4",
            "families/llama4_top2",
            "families/nemotron_h_latent",
            "families/phimoe",
            "families/qwen2_moe",
            "quantised/awq4_g64",
            "quantised/ct_w4a16_asym_g32",
            "quantised/fp8_block128",
            "quantised/gptq4_asym_desc_g32",
            "quantised/nvfp4_ct")
        .hasSizeGreaterThanOrEqualTo(86);
  }

  @TestFactory
  Stream<DynamicNode> recordedOutputs() {
    return Fixture.names().stream().map(GoldenTest::model);
  }

  /** Expert parallelism: each rank adds its own experts' part, base and deltas. */
  @TestFactory
  Stream<DynamicNode> ranksSumToTheRecordedOutputs() {
    return BACKENDS.stream()
        .map(backend ->
            dynamicTest(backend.name(), () -> checkRanks("fixtures/qwen3_moe", backend)));
  }

  private static void checkRanks(String name, ExpertsBackend backend) {
    int ranks = 3;
    try (Fixture fixture = Fixture.open(name);
        MoeOracle oracle = oracle(backend)) {
      int index = fixture.checkpoint.layers().getFirst();
      LayerCheck check = LayerCheck.exact(fixture, index, "sum of ranks on " + backend.name());
      List<@Nullable String> names = check.assignment("mixed");
      double[] sum = new double[check.golden("output.mixed").toDoubles().length];
      for (int rank = 0; rank < ranks; rank++) {
        ExpertMap map = ExpertMap.linear(fixture.config(index).numExperts(), ranks, rank);
        MoeConfig config =
            fixture.config(index).toBuilder()
                .activationFormat(backend.activationFormat())
                .expertMap(map)
                .build();
        try (AdapterRegistry registry = fixture.registryOf(map);
            MoeLayer layer =
                MoeLayer.builder(config, fixture.checkpoint.weights(index, map))
                    .oracle(oracle)
                    .build()) {
          float[] part = check.run(layer, registry, names, false);
          for (int i = 0; i < sum.length; i++) {
            sum[i] += part[i];
          }
        }
      }
      check.close("output.mixed", sum, check.golden("output.mixed").toDoubles());
    }
  }

  /** Activations as the checkpoint means them: INT8, FP8 in four ways, NVFP4. */
  @TestFactory
  Stream<DynamicNode> recordedOutputsOfQuantisedActivations() {
    List<String> recorded =
        Fixture.names().stream()
            .filter(name -> name.startsWith("quantised/"))
            .filter(GoldenTest::hasQuantisedActivations)
            .toList();
    assertThat(recorded).hasSizeGreaterThanOrEqualTo(5);
    return recorded.stream()
        .flatMap(name ->
            Stream.of(new CpuReferenceBackend(), new BatchedCpuReferenceBackend())
                .map(b ->
                    dynamicTest(
                        name + " on " + b.name(), () -> checkQuantisedActivations(name, b))));
  }

  private static boolean hasQuantisedActivations(String name) {
    try (Fixture fixture = Fixture.open(name)) {
      return fixture.io.tensors().keySet().stream().anyMatch(t -> t.endsWith(AS_QUANTISED));
    }
  }

  private static void checkQuantisedActivations(String name, ExpertsBackend backend) {
    try (Fixture fixture = Fixture.open(name);
        MoeOracle oracle = oracle(backend)) {
      for (int index : fixture.checkpoint.layers()) {
        MoeConfig config =
            fixture.config(index).toBuilder()
                .activationFormat(backend.activationFormat())
                .quantizedActivations(true)
                .build();
        try (MoeLayer layer =
            MoeLayer.builder(config, fixture.checkpoint.weights(index)).oracle(oracle).build()) {
          LayerCheck.exact(fixture, index, backend.name())
              .all(layer, fixture.registry, AS_QUANTISED);
        }
      }
    }
  }

  private static MoeOracle oracle(ExpertsBackend backend) {
    return MoeOracle.of(
        BackendCatalog.of(
            List.of(backend),
            List.of(new CpuDeviceProvider()),
            List.of(new CpuBlockOpsProvider())));
  }

  private static DynamicContainer model(String name) {
    List<DynamicNode> tests = new ArrayList<>();
    for (ExpertsBackend backend : BACKENDS) {
      tests.add(dynamicTest(backend.name(), () -> check(name, backend)));
    }
    return dynamicContainer(name, tests);
  }

  private static void check(String name, ExpertsBackend backend) {
    try (Fixture fixture = Fixture.open(name);
        MoeOracle oracle = oracle(backend)) {
      assertThat(fixture.checkpoint.layers()).isNotEmpty();
      for (int index : fixture.checkpoint.layers()) {
        MoeConfig config =
            fixture.config(index).toBuilder().activationFormat(backend.activationFormat()).build();
        if (backend instanceof MonolithicBackend
            && MonolithicExperts.isSupportedRouting(config) instanceof Support.No no) {
          assertThatThrownBy(() -> oracle.select(config))
              .hasMessageContaining(no.reasons().getFirst().message());
          continue;
        }
        try (MoeLayer layer =
            MoeLayer.builder(config, fixture.checkpoint.weights(index)).oracle(oracle).build()) {
          assertThat(layer.selection().chosenBackend().name()).isEqualTo(backend.name());
          LayerCheck.exact(fixture, index, backend.name()).all(layer);
        }
      }
    }
  }
}
