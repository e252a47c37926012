package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaEvent;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeSession;
import io.moe4j.tck.GpuTest;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;

/** Adapters that change slots while forwards of a layer run, eager and as a graph. */
@GpuTest
class GpuUploadTest {
  private static final int TOKENS = 32;
  private static final long BUSY = 1L << 30;
  private static final List<String> NAMES = List.of("a", "b", "c", "d");

  private static List<@Nullable String> names(String name) {
    List<@Nullable String> names = new ArrayList<>();
    for (int t = 0; t < TOKENS; t++) {
      names.add(t % 3 == 0 ? null : name);
    }
    return names;
  }

  /** One slot; ranks that are packed and ranks that are read as they lie. */
  @Test
  void forwardsAheadOfTheCard() {
    try (GpuLayer g = new GpuLayer(256, 192, 16, 4, TOKENS, new LoraConfig(1, 32));
        CudaStream stream = g.device.newStream();
        CudaStream replays = g.device.newStream();
        DeviceBuffer from = g.device.allocate(BUSY);
        DeviceBuffer to = g.device.allocate(BUSY);
        MoeSession session = g.layer.newSession(TOKENS);
        MoeSession replayed = g.layer.newSession(TOKENS)) {
      AdapterRegistry registry = Objects.requireNonNull(g.registry);
      int rank = 5;
      for (String name : NAMES) {
        g.load(name, rank);
        rank += 9;
      }
      Tensor in = g.empty(DType.BF16, TOKENS, g.config.hiddenSize());
      g.put(g.host(1, in.shape()), in);
      Map<String, float[]> expected = new HashMap<>();
      Map<String, Tensor> outputs = new HashMap<>();
      Tensor graphOutput = g.empty(DType.F32, TOKENS, g.config.hiddenSize());
      for (String name : NAMES) {
        Tensor out = g.empty(DType.F32, TOKENS, g.config.hiddenSize());
        outputs.put(name, out);
        try (AdapterBatch batch = registry.batch(names(name))) {
          session.forward(MoeForward.of(in, out).withLora(batch.context(0)), stream);
          stream.synchronize();
          expected.put(name, g.get(out));
        }
        g.device.fill(out, 0xff, stream);
      }
      try (AdapterBatch one = registry.newBatch();
          AdapterBatch two = registry.newBatch()) {
        one.reset(names("d"));
        MoeForward captured = MoeForward.of(in, graphOutput).withLora(one.context(0));
        replayed.forward(captured, replays);
        replays.synchronize();
        try (CudaGraph graph =
                CudaGraph.capture(g.device, replays, () -> replayed.forward(captured, replays));
            CudaEvent busy = g.device.newEvent(false)) {
          one.release();
          for (int i = 0; i < 100; i++) {
            g.device.copy(from.tensor(DType.U8, BUSY), to.tensor(DType.U8, BUSY), stream);
          }
          busy.record(stream);
          run(session, two, "a", in, outputs.get("a"), stream);
          run(session, one, "b", in, outputs.get("b"), stream);
          assertThat(busy.isDone()).as("nobody has waited on the host").isFalse();
          // The graph's stream waits behind the forward that reads the slot.
          two.reset(names("c"));
          replayed.refresh(two.context(0), replays);
          run(session, two, "c", in, outputs.get("c"), stream);
          stream.synchronize();
          one.reset(names("d"));
          replayed.refresh(one.context(0), replays);
          graph.launch(replays);
          one.release(replays);
          replays.synchronize();
        }
      }
      for (String name : List.of("a", "b", "c")) {
        assertThat(g.get(outputs.get(name))).as(name).isEqualTo(expected.get(name));
      }
      assertThat(error(g.get(graphOutput), Objects.requireNonNull(expected.get("d"))))
          .isLessThan(6e-3);
    }
  }

  private static void run(
      MoeSession session,
      AdapterBatch batch,
      String name,
      Tensor in,
      @Nullable Tensor out,
      CudaStream stream) {
    batch.reset(names(name));
    session.forward(
        MoeForward.of(in, Objects.requireNonNull(out)).withLora(batch.context(0)), stream);
    batch.release(stream);
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
