package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.Gpu;
import io.moe4j.cuda.GpuTest;
import io.moe4j.reference.ReferenceRouting;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

@GpuTest
class TopkKernelTest {
  private static final RoutingConfig GROUPED_MAX =
      RoutingConfig.builder(Scoring.SOFTMAX)
          .scalingFactor(16f)
          .groups(4, 2, GroupScore.MAX)
          .build();

  static Stream<Arguments> methods() {
    return Stream.of(
            RoutingConfig.SOFTMAX,
            RoutingConfig.SOFTMAX_RENORMALIZE,
            RoutingConfig.SOFTMAX_TOPK,
            RoutingConfig.SIGMOID,
            RoutingConfig.of(Scoring.SQRT_SOFTPLUS, true),
            RoutingConfig.deepseekV3(4, 2, true, 2.5f),
            GROUPED_MAX)
        .flatMap(r ->
            Stream.of(
                Arguments.of(r, 128, 8),
                Arguments.of(r, 64, 6),
                Arguments.of(r, 20, 2),
                Arguments.of(r, 32, 4),
                Arguments.of(r, 200, 5),
                Arguments.of(r, 512, 31),
                Arguments.of(r, 160, 33)));
  }

  @ParameterizedTest
  @MethodSource("methods")
  void agreesWithTheReference(RoutingConfig routing, int experts, int k) {
    compare(routing, experts, k, 301);
  }

  /** The sizes that vLLM tests grouped top-k with. */
  static Stream<Arguments> grouped() {
    List<Arguments> all = new ArrayList<>();
    for (int tokens : new int[] {1, 33, 64}) {
      for (Scoring scoring : List.of(Scoring.SOFTMAX, Scoring.SIGMOID)) {
        for (boolean renormalize : new boolean[] {false, true}) {
          for (float scale : new float[] {1f, 2.5f}) {
            all.add(Arguments.of(tokens, scoring, renormalize, scale));
          }
        }
      }
    }
    return all.stream();
  }

  @ParameterizedTest
  @MethodSource("grouped")
  void groupedLikeVllm(int tokens, Scoring scoring, boolean renormalize, float scale) {
    RoutingConfig routing =
        RoutingConfig.builder(scoring)
            .renormalize(renormalize)
            .scalingFactor(scale)
            .groups(8, 2, GroupScore.SUM_OF_TOP2)
            .correctionBias(true)
            .build();
    compare(routing, 16, 2, tokens);
  }

  @Test
  void sparseMixer() {
    compare(RoutingConfig.sparseMixer(0.01f), 16, 2, 301);
  }

  @Test
  void manyExpertsAndAllOfThem() {
    compare(RoutingConfig.SOFTMAX, 2048, 8, 5);
    compare(RoutingConfig.SOFTMAX_TOPK, 8, 8, 9);
    compare(RoutingConfig.SOFTMAX_RENORMALIZE, 32, 32, 9);
    compare(RoutingConfig.SIGMOID, 1, 1, 3);
  }

  /** More than a card has room for at once: warps go on to the next token. */
  @Test
  void moreTokensThanWarps() {
    compare(RoutingConfig.SOFTMAX_RENORMALIZE, 128, 8, 20_001);
    compare(RoutingConfig.SIGMOID, 20, 2, 9_003);
  }

  private static void compare(RoutingConfig routing, int experts, int k, int tokens) {
    Random random = new Random(experts * 31L + k);
    float[] logits = Gpu.random(random, tokens * experts, 2f);
    float[] bias = routing.correctionBias() ? Gpu.random(random, experts, 0.3f) : null;
    try (Gpu gpu = new Gpu()) {
      Tensor ids = gpu.empty(DType.I32, tokens, k);
      Tensor weights = gpu.empty(DType.F32, tokens, k);
      new TopkKernel(gpu.device, routing, experts, k)
          .run(
              gpu.floats(DType.F32, logits, tokens, experts),
              bias == null ? null : gpu.floats(DType.F32, bias, experts),
              ids,
              weights,
              gpu.stream);
      int[] gotIds = gpu.ints(ids);
      float[] gotWeights = gpu.floats(weights);
      for (int t = 0; t < tokens; t++) {
        int[] want = new int[k];
        double[] wantWeights = new double[k];
        ReferenceRouting.route(
            routing,
            doubles(logits, t * experts, experts),
            bias == null ? null : doubles(bias, 0, experts),
            want,
            wantWeights);
        assertThat(Arrays.copyOfRange(gotIds, t * k, t * k + k))
            .as("ids of token %d", t)
            .isEqualTo(want);
        Gpu.assertClose(
            Arrays.copyOfRange(gotWeights, t * k, t * k + k),
            wantWeights,
            2e-6,
            "weights of token " + t);
      }
    }
  }

  @Test
  void tiesGoToTheLowerExpertAndNanStaysInItsRow() {
    int experts = 40;
    float[] logits = new float[3 * experts];
    logits[5] = logits[33] = logits[17] = 1f;
    Arrays.fill(logits, experts, 2 * experts, Float.NaN);
    logits[2 * experts + 39] = Float.POSITIVE_INFINITY;
    try (Gpu gpu = new Gpu()) {
      Tensor ids = gpu.empty(DType.I32, 3, 5);
      Tensor weights = gpu.empty(DType.F32, 3, 5);
      new TopkKernel(gpu.device, RoutingConfig.SOFTMAX_TOPK, experts, 5)
          .run(gpu.floats(DType.F32, logits, 3, experts), null, ids, weights, gpu.stream);
      int[] got = gpu.ints(ids);
      assertThat(Arrays.copyOf(got, 5)).containsExactly(5, 17, 33, 0, 1);
      assertThat(Arrays.stream(got, 5, 10))
          .doesNotHaveDuplicates()
          .allMatch(i -> i >= 0 && i < experts);
      assertThat(got[10]).isEqualTo(39);
      float[] w = gpu.floats(weights);
      assertThat(w[0]).isEqualTo(w[1]).isEqualTo(w[2]);
      assertThat(w[5]).isNaN();
    }
  }

  private static double[] doubles(float[] v, int from, int n) {
    double[] out = new double[n];
    for (int i = 0; i < n; i++) {
      out[i] = v[from + i];
    }
    return out;
  }
}
