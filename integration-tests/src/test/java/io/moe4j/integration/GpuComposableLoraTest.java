package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.marlin.MarlinOptions;
import io.moe4j.backend.triton.options.TritonOptions;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeSession;
import io.moe4j.tck.GpuTest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * The same layer with LoRA fused into the GEMMs and with the deltas of the punica wrapper: the same
 * result, eager and as a graph whose adapters change.
 */
@GpuTest
class GpuComposableLoraTest {
  private static final int[] TOKENS = {1, 3, 24, 300};

  private static List<@Nullable String> names(int tokens, String... cycle) {
    List<@Nullable String> names = new ArrayList<>();
    for (int t = 0; t < tokens; t++) {
      String name = cycle[t % cycle.length];
      names.add(name.isEmpty() ? null : name);
    }
    return names;
  }

  private static GpuLayer layer(String backend, String mode, ActivationFormat format) {
    MoeConfig.Builder b =
        MoeConfig.builder(512, 320, 16, 4)
            .activationFormat(format)
            .maxTokens(300)
            .lora(new LoraConfig(3, 64));
    if (backend.equals("marlin")) {
      b.quantScheme(QuantScheme.int4(64))
          .options(MarlinOptions.DEFAULT.withLora(LoraMode.of(mode)));
    } else {
      b.options(TritonOptions.DEFAULT.withLora(LoraMode.of(mode)));
    }
    GpuLayer g =
        new GpuLayer(
            b.build(),
            1 / Math.sqrt(512),
            1 / Math.sqrt(320),
            format == ActivationFormat.BATCHED ? "batched-" + backend : backend);
    int rank = 6;
    for (String name : List.of("a", "b", "c", "d")) {
      g.load(name, rank);
      rank += 16;
    }
    return g;
  }

  @ParameterizedTest
  @CsvSource({
    "triton, composable, STANDARD",
    "triton, composable-one-stream, STANDARD",
    "triton, composable-two-streams, STANDARD",
    "triton, composable-one-stream, BATCHED",
    "triton, composable-two-streams, BATCHED",
    "marlin, composable, STANDARD",
    "marlin, composable-one-stream, STANDARD",
    "marlin, composable-two-streams, STANDARD",
    "marlin, composable-one-stream, BATCHED",
    "marlin, composable-two-streams, BATCHED"
  })
  void theSameAsFused(String backend, String mode, ActivationFormat format) {
    try (GpuLayer fused = layer(backend, "fused", format);
        GpuLayer composed = layer(backend, mode, format)) {
      for (int tokens : TOKENS) {
        Tensor host = fused.host(1, tokens, 512);
        List<float[]> expected = run(fused, host);
        List<float[]> actual = run(composed, host);
        assertThat(actual).hasSameSizeAs(expected);
        for (int i = 0; i < expected.size(); i++) {
          assertThat(error(actual.get(i), expected.get(i)))
              .as("%s, %s tokens, run %s", mode, tokens, i)
              .isLessThan(1e-2);
        }
        assertThat(error(actual.getLast(), expected.getFirst()))
            .as("adapters matter")
            .isGreaterThan(0.1);
        for (int t = 1; t < tokens; t += 3) {
          assertThat(row(actual.getFirst(), t))
              .as("%s tokens: token %s has no adapter", tokens, t)
              .containsExactly(row(actual.getLast(), t));
        }
      }
    }
  }

  /**
   * With some adapters (none on every third token from the second on), with others in their slots,
   * and replayed with each; the base model last.
   */
  private static List<float[]> run(GpuLayer g, Tensor host) {
    int tokens = Math.toIntExact(host.size(0));
    AdapterRegistry registry = Objects.requireNonNull(g.registry);
    List<float[]> results = new ArrayList<>();
    try (CudaStream stream = g.device.newStream();
        MoeSession session = g.layer.newSession(tokens);
        AdapterBatch batch = registry.newBatch()) {
      Tensor in = g.empty(DType.BF16, host.shape());
      Tensor out = g.empty(DType.F32, host.shape());
      g.put(host, in);
      // The largest rank first: a captured call of the wrapper takes no larger ones.
      batch.reset(names(tokens, "d", "", "b"));
      MoeForward request = MoeForward.of(in, out).withLora(batch.context(0));
      session.forward(request, stream);
      stream.synchronize();
      results.add(g.get(out));
      try (CudaGraph graph =
          CudaGraph.capture(g.device, stream, () -> session.forward(request, stream))) {
        for (String[] who : new String[][] {{"d", "", "b"}, {"c", "a"}, {"a", "d", "b", ""}}) {
          batch.reset(names(tokens, who));
          session.refresh(batch.context(0), stream);
          g.device.fill(out, 0xff, stream);
          graph.launch(stream);
          stream.synchronize();
          results.add(g.get(out));
        }
      }
      session.forward(MoeForward.of(in, out), stream);
      stream.synchronize();
      results.add(g.get(out));
    }
    return results;
  }

  private static float[] row(float[] all, int token) {
    return Arrays.copyOfRange(all, token * 512, (token + 1) * 512);
  }

  private static double error(float[] actual, float[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += Math.pow(actual[i] - expected[i], 2);
      norm += Math.pow(expected[i], 2);
    }
    return Math.sqrt(difference / norm);
  }
}
