package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.DynamicContainer.dynamicContainer;
import static org.junit.jupiter.api.DynamicTest.dynamicTest;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.backend.cpu.reference.BatchedCpuReferenceBackend;
import io.moe4j.backend.cpu.reference.CpuReferenceBackend;
import io.moe4j.lora.AdapterBatch;
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
  void fiveModelsAreHere() {
    assertThat(Fixture.names())
        .containsExactly("deepseek_v3", "gpt_oss", "mixtral", "olmoe", "qwen3_moe");
  }

  @TestFactory
  Stream<DynamicNode> recordedOutputs() {
    return Fixture.names().stream().map(GoldenTest::model);
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
        MoeOracle oracle =
            MoeOracle.of(BackendCatalog.of(List.of(backend), List.of(new CpuDeviceProvider())))) {
      assertThat(fixture.checkpoint.layers()).hasSize(2);
      for (int index : fixture.checkpoint.layers()) {
        MoeConfig config =
            fixture.config(index).toBuilder().activationFormat(backend.activationFormat()).build();
        try (MoeLayer layer =
            MoeLayer.builder(config, fixture.checkpoint.weights(index)).oracle(oracle).build()) {
          assertThat(layer.selection().chosenBackend().name()).isEqualTo(backend.name());
          new LayerCheck(fixture, layer, index).all();
        }
      }
    }
  }

  /** One layer on one backend. */
  private record LayerCheck(Fixture fixture, MoeLayer layer, int index) {
    void all() {
      Tensor input = golden("input");
      int tokens = (int) input.size(0);
      for (String who : fixture.order) {
        output(who, Collections.nCopies(tokens, who.equals("base") ? null : who));
      }
      for (String mixed : List.of("mixed", "mixed_peft")) {
        List<String> order = fixture.order(mixed);
        List<@Nullable String> names = new ArrayList<>();
        for (int number : fixture.io.tensor(mixed + ".assignment").toInts()) {
          names.add(number == 0 ? null : order.get(number));
        }
        assertThat(names).hasSize(tokens).contains((String) null);
        output(mixed, names);
      }
    }

    private void output(String who, List<@Nullable String> names) {
      Tensor input = golden("input");
      int tokens = (int) input.size(0);
      MoeConfig config = layer.config();
      float[] output = new float[tokens * config.hiddenSize()];
      int[] ids = new int[tokens * config.topK()];
      float[] weights = new float[tokens * config.topK()];
      float[] logits = new float[tokens * config.numExperts()];
      try (AdapterBatch batch = fixture.registry.batch(names)) {
        MoeForward request =
            MoeForward.of(input, Tensor.ofFloats(output, tokens, config.hiddenSize()))
                .topkInto(
                    Tensor.ofInts(ids, tokens, config.topK()),
                    Tensor.ofFloats(weights, tokens, config.topK()))
                .logitsInto(Tensor.ofFloats(logits, tokens, config.numExperts()));
        layer.forward(batch.numAdapters() == 0 ? request : request.withLora(batch.context(index)));
      }
      close("output." + who, output);
      close("router_logits", logits);
      choice(tokens, config.topK(), ids, weights);
    }

    private Tensor golden(String what) {
      return fixture.io.tensor("layers." + index + "." + what);
    }

    private void close(String what, float[] actual) {
      double[] golden = golden(what).toDoubles();
      assertThat(actual).hasSize(golden.length);
      double[] wide = new double[actual.length];
      Arrays.setAll(wide, i -> actual[i]);
      assertThat(relativeError(wide, golden))
          .as("%s layer %d %s on %s", fixture.name, index, what, layer)
          .isLessThanOrEqualTo(TOLERANCE);
    }

    /** The order of ids is undefined in places, so each token's choice is compared as a set. */
    private void choice(int tokens, int topK, int[] ids, float[] weights) {
      int[] goldenIds = golden("topk_ids").toInts();
      double[] goldenWeights = golden("topk_weights").toDoubles();
      double[] sorted = new double[weights.length];
      double[] goldenSorted = new double[weights.length];
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
          sorted[at] = chosen.getOrDefault(e, Double.NaN);
          goldenSorted[at++] = expected.getOrDefault(e, Double.NaN);
        }
      }
      assertThat(relativeError(sorted, goldenSorted)).as("weights").isLessThan(TOLERANCE);
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
