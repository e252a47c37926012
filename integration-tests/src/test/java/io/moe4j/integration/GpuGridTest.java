package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeSession;
import io.moe4j.reference.ReferenceRouting;
import io.moe4j.tck.GpuTest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * The sizes that vLLM tests its fused MoE kernel with, on the layer as a whole. Of large batches
 * some tokens are compared, against float64.
 */
@GpuTest
class GpuGridTest {
  /** vLLM's: absolute, for inputs and weights of deviation 0.1. */
  private static final double BASE_TOLERANCE = 2e-2;

  static Stream<Arguments> base() {
    List<Arguments> all = new ArrayList<>();
    int[][] sizes = {
      {1, 128, 128}, {1, 2048, 128}, {33, 2048, 128}, {32768, 2048, 511}, {40000, 1024, 1024}
    };
    for (int[] s : sizes) {
      for (int experts : new int[] {8, 64, 192}) {
        for (int topK : new int[] {2, 6}) {
          for (int ranks : new int[] {1, 4}) {
            all.add(Arguments.of(s[0], s[1], s[2], experts, topK, ranks));
          }
        }
      }
    }
    // Few pairs, many experts.
    for (int[] s : new int[][] {{1, 128, 128}, {1, 2048, 128}, {2, 2048, 128}, {2, 2048, 511}}) {
      for (int experts : new int[] {128, 256}) {
        for (int topK : new int[] {1, 2}) {
          all.add(Arguments.of(s[0], s[1], s[2], experts, topK, 1));
        }
      }
    }
    return all.stream();
  }

  @ParameterizedTest(name = "T={0} I={1} H={2} E={3} K={4} ranks {5}")
  @MethodSource("base")
  void base(int tokens, int intermediate, int hidden, int experts, int topK, int ranks) {
    Random random = new Random(tokens + experts);
    MoeConfig.Builder b =
        MoeConfig.builder(hidden, intermediate, experts, topK)
            .routing(RoutingConfig.SOFTMAX)
            .maxTokens(tokens);
    if (ranks > 1) {
      b.parallel(ParallelConfig.expert(2, 0)).expertMap(GpuLayer.someLocal(experts, ranks, random));
    }
    try (GpuLayer g = new GpuLayer(b.build(), 0.1, 0.1);
        CudaStream stream = g.device.newStream();
        MoeSession session = g.layer.newSession(tokens)) {
      Tensor hostIn = g.host(0.1, tokens, hidden);
      Tensor in = g.empty(DType.BF16, tokens, hidden);
      g.put(hostIn, in);
      float[] scores = new float[tokens * experts];
      for (int i = 0; i < scores.length; i++) {
        scores[i] = (float) random.nextGaussian();
      }
      Tensor logits = g.empty(DType.F32, tokens, experts);
      g.put(Tensor.ofFloats(scores, tokens, experts), logits);
      Tensor ids = g.empty(DType.I32, tokens, topK);
      Tensor weights = g.empty(DType.F32, tokens, topK);
      Tensor out = g.empty(DType.BF16, tokens, hidden);
      MoeForward request = MoeForward.of(in, out).withRouterLogits(logits).topkInto(ids, weights);
      session.forward(request, stream);
      stream.synchronize();
      Tensor chosen = g.download(ids);
      Tensor weighted = g.download(weights);
      Tensor result = g.download(out);
      GpuLayer.compared(tokens)
          .parallel()
          .forEach(t -> {
            int[] expected = new int[topK];
            double[] ignored = new double[topK];
            double[] own = new double[experts];
            Arrays.setAll(own, e -> scores[t * experts + e]);
            ReferenceRouting.route(g.config.routing(), own, null, expected, ignored);
            assertThat(chosen.select(0, t).toInts()).isEqualTo(expected);
            double[] truth = g.reference(t, hostIn, chosen, weighted, null);
            double[] actual = result.select(0, t).toDoubles();
            for (int i = 0; i < truth.length; i++) {
              if (!(Math.abs(actual[i] - truth[i]) <= BASE_TOLERANCE)) {
                throw new AssertionError(
                    "token " + t + ", element " + i + " is " + actual[i] + ", must be " + truth[i]);
              }
            }
          });
      if (intermediate >= 1024 && hidden >= 1024) {
        float[] eager = result.toFloats();
        g.put(g.host(0.1, tokens, hidden), out);
        try (CudaGraph graph =
            CudaGraph.capture(g.device, stream, () -> session.forward(request, stream))) {
          graph.launch(stream);
          stream.synchronize();
        }
        assertThat(Arrays.equals(g.get(out), eager)).as("the replay gives the same bits").isTrue();
      }
    }
  }
}
