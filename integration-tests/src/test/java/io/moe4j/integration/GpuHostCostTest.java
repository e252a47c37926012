package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeSession;
import io.moe4j.tck.GpuTest;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import org.junit.jupiter.api.Test;

/**
 * What one forward of one token costs the calling thread, launches enqueued but not waited for: an
 * eager one, and the replay of a captured one. The card is idle before every round, so that no call
 * waits for room in the queue.
 */
@GpuTest
class GpuHostCostTest {
  private static final double EAGER_MICROS = 40;
  private static final double REPLAY_MICROS = 12;
  private static final int ROUNDS = 400;
  private static final int A_ROUND = 20;

  @Test
  void oneToken() {
    try (GpuLayer g = new GpuLayer(2048, 768, 32, 8, 16, new LoraConfig(4, 16));
        CudaStream stream = g.device.newStream();
        MoeSession session = g.layer.newSession(16)) {
      g.load("a", 16);
      try (AdapterBatch batch = Objects.requireNonNull(g.registry).batch(List.of("a"))) {
        Tensor in = g.empty(DType.BF16, 1, 2048);
        Tensor out = g.empty(DType.BF16, 1, 2048);
        g.put(g.host(1, 1, 2048), in);
        MoeForward base = MoeForward.of(in, out);
        MoeForward lora = base.withLora(batch.context(0));
        double eager = micros(stream, () -> session.forward(base, stream));
        double eagerLora = micros(stream, () -> session.forward(lora, stream));
        double replay;
        double replayLora;
        try (CudaGraph graph =
                CudaGraph.capture(g.device, stream, () -> session.forward(base, stream));
            CudaGraph loraGraph =
                CudaGraph.capture(g.device, stream, () -> session.forward(lora, stream))) {
          replay = micros(stream, () -> graph.launch(stream));
          replayLora = micros(stream, () -> loraGraph.launch(stream));
        }
        System.out.printf(
            "host cost of one token in us: eager %.1f, with LoRA %.1f; replay %.1f, with LoRA %.1f%n",
            eager, eagerLora, replay, replayLora);
        assertThat(eager).as("eager").isLessThan(EAGER_MICROS);
        assertThat(eagerLora).as("eager with LoRA").isLessThan(EAGER_MICROS);
        assertThat(replay).as("replay").isLessThan(REPLAY_MICROS);
        assertThat(replayLora).as("replay with LoRA").isLessThan(REPLAY_MICROS);
      }
    }
  }

  /** The median round of the last half, when the compiler is done. */
  private static double micros(CudaStream stream, Runnable work) {
    double[] rounds = new double[ROUNDS];
    for (int r = 0; r < 2 * ROUNDS; r++) {
      stream.synchronize();
      long start = System.nanoTime();
      for (int i = 0; i < A_ROUND; i++) {
        work.run();
      }
      rounds[r % ROUNDS] = (System.nanoTime() - start) / 1e3 / A_ROUND;
    }
    stream.synchronize();
    Arrays.sort(rounds);
    return rounds[ROUNDS / 2];
  }
}
