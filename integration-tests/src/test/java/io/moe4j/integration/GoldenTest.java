package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.DynamicContainer.dynamicContainer;
import static org.junit.jupiter.api.DynamicTest.dynamicTest;

import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.backend.cpu.reference.BatchedCpuReferenceBackend;
import io.moe4j.backend.cpu.reference.CpuReferenceBackend;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
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
 */
class GoldenTest {
  private static final double TOLERANCE = 1e-5;

  private static final List<ExpertsBackend> BACKENDS =
      List.of(
          new CpuExpertsBackend(),
          new CpuReferenceBackend(),
          new BatchedCpuReferenceBackend(),
          new ComposableBackend(GateUpLayout.HALVES, false),
          new ComposableBackend(GateUpLayout.INTERLEAVED, true));

  @Test
  void theModelsAreHere() {
    assertThat(Fixture.names())
        .contains(
            "fixtures/deepseek_v3",
            "fixtures/gpt_oss",
            "fixtures/mixtral",
            "fixtures/olmoe",
            "fixtures/qwen3_moe",
            "families/gpt_oss_mxfp4",
            "families/llama4_top2",
            "families/nemotron_h_latent",
            "families/phimoe",
            "families/qwen2_moe")
        .hasSizeGreaterThanOrEqualTo(26);
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
      LayerCheck check = new LayerCheck(fixture, index, "sum of ranks on " + backend.name());
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

  private static MoeOracle oracle(ExpertsBackend backend) {
    return MoeOracle.of(BackendCatalog.of(List.of(backend), List.of(new CpuDeviceProvider())));
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
        try (MoeLayer layer =
            MoeLayer.builder(config, fixture.checkpoint.weights(index)).oracle(oracle).build()) {
          assertThat(layer.selection().chosenBackend().name()).isEqualTo(backend.name());
          new LayerCheck(fixture, index, backend.name()).all(layer);
        }
      }
    }
  }

  /** One layer's recorded tensors. */
  private record LayerCheck(Fixture fixture, int index, String who) {
    void all(MoeLayer layer) {
      int tokens = tokens();
      for (String name : fixture.order) {
        String adapter = name.equals("base") ? null : name;
        output(layer, "output." + name, Collections.nCopies(tokens, adapter));
      }
      if (fixture.name.startsWith("fixtures/")) {
        output(layer, "output.mixed", assignment("mixed"));
        output(layer, "output.mixed_peft", assignment("mixed_peft"));
      } else {
        roundRobin(layer);
      }
    }

    /** Nothing mixed was recorded, but every row of a mixed batch was. */
    private void roundRobin(MoeLayer layer) {
      int tokens = tokens();
      int width = layer.config().hiddenSize();
      List<@Nullable String> names = new ArrayList<>();
      double[] expected = new double[tokens * width];
      for (int t = 0; t < tokens; t++) {
        String name = fixture.order.get(t % fixture.order.size());
        names.add(name.equals("base") ? null : name);
        double[] row = golden("output." + name).select(0, t).toDoubles();
        System.arraycopy(row, 0, expected, t * width, width);
      }
      close("round robin", wide(run(layer, fixture.registry, names, true)), expected);
    }

    private void output(MoeLayer layer, String what, List<@Nullable String> names) {
      close(what, wide(run(layer, fixture.registry, names, true)), golden(what).toDoubles());
    }

    /** Runs the block; with {@code route}, checks logits and choice where they were recorded. */
    float[] run(
        MoeLayer layer, AdapterRegistry registry, List<@Nullable String> names, boolean route) {
      Tensor input = golden("input");
      int tokens = tokens();
      MoeConfig config = layer.config();
      float[] output = new float[tokens * config.hiddenSize()];
      int[] ids = new int[tokens * config.topK()];
      float[] weights = new float[tokens * config.topK()];
      float[] logits = new float[tokens * config.numExperts()];
      try (AdapterBatch batch = registry.batch(names)) {
        MoeForward request =
            MoeForward.of(input, Tensor.ofFloats(output, tokens, config.hiddenSize()))
                .topkInto(
                    Tensor.ofInts(ids, tokens, config.topK()),
                    Tensor.ofFloats(weights, tokens, config.topK()))
                .logitsInto(Tensor.ofFloats(logits, tokens, config.numExperts()));
        layer.forward(batch.numAdapters() == 0 ? request : request.withLora(batch.context(index)));
      }
      if (route) {
        routing(tokens, config.topK(), ids, weights, logits);
      }
      return output;
    }

    private void routing(int tokens, int topK, int[] ids, float[] weights, float[] logits) {
      boolean all = fixture.name.startsWith("fixtures/");
      if (all || fixture.has(key("router_logits"))) {
        close("router_logits", wide(logits), golden("router_logits").toDoubles());
      }
      if (all || fixture.has(key("topk_ids"))) {
        choice(tokens, topK, ids, weights);
      }
    }

    /** The adapter of each row of a recorded mixed batch. */
    List<@Nullable String> assignment(String mixed) {
      List<String> order = fixture.order(mixed);
      List<@Nullable String> names = new ArrayList<>();
      for (int number : fixture.io.tensor(mixed + ".assignment").toInts()) {
        names.add(number == 0 ? null : order.get(number));
      }
      assertThat(names).hasSize(tokens()).contains((String) null);
      return names;
    }

    private int tokens() {
      return (int) golden("input").size(0);
    }

    private String key(String what) {
      return "layers." + index + "." + what;
    }

    Tensor golden(String what) {
      return fixture.io.tensor(key(what));
    }

    void close(String what, double[] actual, double[] golden) {
      assertThat(actual).hasSize(golden.length);
      double error = relativeError(actual, golden);
      assertThat(error)
          .as("%s layer %d %s on %s", fixture.name, index, what, who)
          .isLessThanOrEqualTo(TOLERANCE);
    }

    private static double[] wide(float[] values) {
      double[] wide = new double[values.length];
      Arrays.setAll(wide, i -> values[i]);
      return wide;
    }

    /** The order of ids is undefined in places, so each token's choice is compared as a set. */
    private void choice(int tokens, int topK, int[] ids, float[] weights) {
      int[] goldenIds = golden("topk_ids").toInts();
      boolean weighted = fixture.name.startsWith("fixtures/") || fixture.has(key("topk_weights"));
      double[] goldenWeights =
          weighted ? golden("topk_weights").toDoubles() : new double[weights.length];
      double[] byExpert = new double[weights.length];
      double[] goldenByExpert = new double[weights.length];
      for (int t = 0; t < tokens; t++) {
        Map<Integer, Double> chosen = new TreeMap<>();
        Map<Integer, Double> expected = new TreeMap<>();
        for (int p = t * topK; p < (t + 1) * topK; p++) {
          chosen.put(ids[p], (double) weights[p]);
          expected.put(goldenIds[p], goldenWeights[p]);
        }
        assertThat(chosen.keySet()).as("experts of token %d", t).isEqualTo(expected.keySet());
        int at = t * topK;
        for (int e : chosen.keySet()) {
          byExpert[at] = chosen.getOrDefault(e, Double.NaN);
          goldenByExpert[at++] = expected.getOrDefault(e, Double.NaN);
        }
      }
      if (weighted) {
        close("topk_weights", byExpert, goldenByExpert);
      }
    }
  }

  /** L2 norm of the difference over that of the expected. */
  private static double relativeError(double[] actual, double[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    return Math.sqrt(difference / norm);
  }
}
