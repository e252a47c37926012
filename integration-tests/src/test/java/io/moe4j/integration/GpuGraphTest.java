package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeSession;
import io.moe4j.tck.GpuTest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * A layer's forward captured once a bucket of tokens, and replayed with everything else changed.
 */
@GpuTest
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
class GpuGraphTest {
  private static final int SLOTS = 3;
  private static final int MAX_RANK = 32;

  private @Nullable GpuLayer gpu;

  @BeforeAll
  void open() {
    gpu = new GpuLayer(256, 192, 16, 4, 512, new LoraConfig(SLOTS, MAX_RANK));
    load(gpu);
  }

  /** Five adapters of ragged ranks. */
  static void load(GpuLayer g) {
    int rank = 4;
    for (String name : List.of("a", "b", "c", "d", "e")) {
      g.load(name, rank);
      rank += 7;
    }
  }

  @AfterAll
  void close() {
    if (gpu != null) {
      gpu.close();
    }
  }

  /**
   * Tokens, routings (they follow from the tokens), assignments, and adapters that change slots.
   */
  @ParameterizedTest
  @ValueSource(ints = {1, 8, 64, 512})
  void replaysWithOtherTokensRoutingsAssignmentsAndAdapters(int tokens) {
    checkReplays(Objects.requireNonNull(gpu), tokens);
  }

  @Test
  void replaysMxfp4() {
    MoeConfig config =
        MoeConfig.builder(256, 192, 16, 4)
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .maxTokens(64)
            .lora(new LoraConfig(SLOTS, MAX_RANK))
            .build();
    try (GpuLayer g = new GpuLayer(config, 1 / Math.sqrt(256), 1 / Math.sqrt(192))) {
      load(g);
      checkReplays(g, 1);
      checkReplays(g, 64);
    }
  }

  /** Replays against eager forwards, the adapters of {@link #load} taking turns in three slots. */
  static void checkReplays(GpuLayer g, int tokens) {
    try (CudaStream stream = g.device.newStream();
        MoeSession session = g.layer.newSession(tokens);
        AdapterBatch batch = Objects.requireNonNull(g.registry).newBatch()) {
      Tensor in = g.empty(DType.BF16, tokens, g.config.hiddenSize());
      Tensor out = g.empty(DType.F32, tokens, g.config.hiddenSize());
      Tensor eager = g.empty(DType.F32, tokens, g.config.hiddenSize());
      g.put(g.host(1, in.shape()), in);
      batch.reset(names(tokens, "a", "b"));
      MoeForward request = MoeForward.of(in, out).withLora(batch.context(0));
      session.forward(request, stream);
      stream.synchronize();
      try (CudaGraph graph =
          CudaGraph.capture(g.device, stream, () -> session.forward(request, stream))) {
        // The last three need slots that others hold.
        for (String[] who :
            new String[][] {{"a", "b"}, {"b"}, {"", "a"}, {"c", ""}, {"d", "e"}, {"e", "a", "c"}}) {
          g.put(g.host(1, in.shape()), in);
          batch.reset(names(tokens, who));
          session.refresh(batch.context(0), stream);
          graph.launch(stream);
          stream.synchronize();
          float[] replayed = g.get(out);
          session.forward(MoeForward.of(in, eager).withLora(batch.context(0)), stream);
          stream.synchronize();
          assertThat(error(replayed, g.get(eager))).as(Arrays.toString(who)).isLessThan(6e-3);
          session.forward(MoeForward.of(in, eager), stream);
          stream.synchronize();
          assertThat(error(replayed, g.get(eager))).as("deltas are there").isGreaterThan(0.1);
          graph.launch(stream);
          stream.synchronize();
          assertThat(g.get(out)).as("the same again").isEqualTo(replayed);
        }
      }
    }
  }

  /** Loading factors into rows of a table cannot be recorded; the message says what to do. */
  @Test
  void newAdaptersInsideACaptureAreRefused() {
    GpuLayer g = Objects.requireNonNull(gpu);
    try (CudaStream stream = g.device.newStream();
        MoeSession session = g.layer.newSession(4);
        AdapterBatch batch = Objects.requireNonNull(g.registry).newBatch()) {
      Tensor in = g.empty(DType.BF16, 4, g.config.hiddenSize());
      Tensor out = g.empty(DType.F32, 4, g.config.hiddenSize());
      g.put(g.host(1, in.shape()), in);
      batch.reset(names(4, "a"));
      session.forward(MoeForward.of(in, out).withLora(batch.context(0)), stream);
      batch.reset(names(4, "b", "c", "d"));
      stream.synchronize();
      assertThatExceptionOfType(MoeException.class)
          .isThrownBy(() ->
              CudaGraph.capture(
                  g.device,
                  stream,
                  () -> session.forward(MoeForward.of(in, out).withLora(batch.context(0)), stream)))
          .withMessageContaining("refresh the session");
      session.forward(MoeForward.of(in, out).withLora(batch.context(0)), stream);
      stream.synchronize();
    }
  }

  private static List<@Nullable String> names(int tokens, String... cycle) {
    List<@Nullable String> names = new ArrayList<>();
    for (int t = 0; t < tokens; t++) {
      // A single token takes the last, which is never the base model alone.
      String name = tokens == 1 ? last(cycle) : cycle[t % cycle.length];
      names.add(name.isEmpty() ? null : name);
    }
    return names;
  }

  private static String last(String... cycle) {
    return Arrays.stream(cycle).filter(n -> !n.isEmpty()).reduce((a, b) -> b).orElseThrow();
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
