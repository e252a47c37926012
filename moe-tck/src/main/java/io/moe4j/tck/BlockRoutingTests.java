package io.moe4j.tck;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.reference.ReferenceRouting;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Rule 6.1: routing. A part of {@link BlockOpsConformanceTest}, which providers extend. */
abstract class BlockRoutingTests extends BlockSubject {
  BlockRoutingTests() {}

  // ---- 6.1: routing

  /**
   * Scores, renormalisation, bias, scaling, groups. Ids exact and in order.
   *
   * @param c the case
   */
  @ParameterizedTest(name = "{0}")
  @MethodSource("io.moe4j.tck.BlockCases#routes")
  public final void required_MOE_6_1_routing(Object c) {
    var route = (BlockCases.Route) c;
    Data data = new Data(route.hashCode());
    double[] bias = route.correctionBias(data);
    double[][] logits = new double[route.tokens()][];
    for (int t = 0; t < logits.length; t++) {
      logits[t] = route.logits(data, bias);
    }
    verifyRouting(route.config(), bias, logits, null);
  }

  /** Equal logits: the smaller id first. */
  @Test
  public final void required_MOE_6_1_tiesGoToTheSmallerId() {
    double[][] logits = {
      {1, 1, 1, 1, 1, 1, 1, 1},
      {0, 2, 1, 2, 0, 2, 1, 2},
      {-3, -3, -3, 5, -3, -3, -3, -3},
      {2, 1, 1, 1, 1, 1, 1, 2}
    };
    for (RoutingConfig routing :
        List.of(
            RoutingConfig.SOFTMAX,
            RoutingConfig.SOFTMAX_TOPK,
            RoutingConfig.SIGMOID,
            RoutingConfig.deepseekV3(4, 2, true, 1f))) {
      for (int k : new int[] {1, 3, 4}) {
        MoeConfig config = MoeConfig.builder(4, 4, 8, k).routing(routing).build();
        verifyRouting(config, routing.correctionBias() ? new double[8] : null, logits, null);
      }
    }
  }

  /** Experts that a model switched off with minus infinity. */
  @Test
  public final void required_MOE_6_1_minusInfinityIsNotChosen() {
    double off = Double.NEGATIVE_INFINITY;
    double[][] logits = {{off, 1, off, 2, off, 3}, {3, 2, 1, off, off, off}};
    for (RoutingConfig routing :
        List.of(
            RoutingConfig.SOFTMAX_RENORMALIZE, RoutingConfig.SOFTMAX_TOPK, RoutingConfig.SIGMOID)) {
      verifyRouting(MoeConfig.builder(4, 4, 6, 3).routing(routing).build(), null, logits, null);
    }
  }

  /** A table chooses, the scores weigh. */
  @Test
  public final void required_MOE_6_1_byTokenId() {
    for (RoutingConfig.Scoring scoring :
        List.of(
            RoutingConfig.Scoring.SOFTMAX,
            RoutingConfig.Scoring.SIGMOID,
            RoutingConfig.Scoring.SQRT_SOFTPLUS)) {
      RoutingConfig routing =
          RoutingConfig.builder(scoring)
              .renormalize(true)
              .scalingFactor(1.5f)
              .byTokenId(true)
              .build();
      Data data = new Data(21);
      double[][] logits = new double[9][8];
      int[] tokenIds = new int[logits.length];
      for (int t = 0; t < logits.length; t++) {
        tokenIds[t] = data.below(VOCABULARY);
        for (int e = 0; e < 8; e++) {
          logits[t][e] = (float) (2 * data.gaussian());
        }
      }
      verifyRouting(MoeConfig.builder(4, 4, 8, 3).routing(routing).build(), null, logits, tokenIds);
    }
  }

  private static final int VOCABULARY = 13;

  private void verifyRouting(
      MoeConfig config, double @Nullable [] bias, double[][] logits, int @Nullable [] tokenIds) {
    int tokens = logits.length;
    int topK = config.topK();
    Tensor z = Data.empty(DType.F32, tokens, config.numExperts());
    for (int t = 0; t < tokens; t++) {
      for (int e = 0; e < config.numExperts(); e++) {
        z.set(logits[t][e], t, e);
      }
    }
    MoeLayerWeights layer = withBias(config, bias);
    RouterWeights router = java.util.Objects.requireNonNull(layer.router());
    Tensor scale = router.expertScale();
    Tensor table = router.tokenExperts();
    try (BlockOps ops = prepare(config, layer);
        Bench bench = new Bench(device())) {
      Tensor ids = bench.output(DType.I32, tokens, topK);
      Tensor weights = bench.output(DType.F32, tokens, topK);
      var workspace = bench.workspace(ops.workspaceBytes(tokens));
      if (tokenIds == null) {
        ops.route(bench.input(z), ids, weights, workspace, bench.stream);
      } else {
        Tensor given = bench.input(Tensor.ofInts(tokenIds, tokens));
        ops.routeByTokenId(bench.input(z), given, ids, weights, workspace, bench.stream);
      }
      bench.stream.synchronize();
      double[][] gotIds = bench.rows(ids);
      double[][] gotWeights = bench.rows(weights);
      double tolerance = BlockCases.tolerance(config.numExperts());
      for (int t = 0; t < tokens; t++) {
        int[] expectedIds = new int[topK];
        double[] expected = new double[topK];
        ReferenceRouting.route(
            config.routing(),
            z.select(0, t).toDoubles(),
            bias,
            scale == null ? null : scale.toDoubles(),
            tokenIds == null || table == null ? null : table.select(0, tokenIds[t]).toInts(),
            expectedIds,
            expected);
        int token = t;
        assertArrayEquals(
            java.util.Arrays.stream(expectedIds).asDoubleStream().toArray(),
            gotIds[t],
            () -> "MOE-6.1: ids of token " + token + " for " + config.routing());
        for (int k = 0; k < topK; k++) {
          assertEquals(
              expected[k],
              gotWeights[t][k],
              Math.abs(expected[k]) * tolerance + Float.MIN_NORMAL,
              () -> "MOE-6.1: a weight of token " + token + " for " + config.routing());
        }
      }
      bench.requireNothingElseWritten();
    }
  }

  static MoeLayerWeights withBias(MoeConfig config, double @Nullable [] bias) {
    Data data = new Data(1);
    Tensor correction = null;
    if (bias != null) {
      correction = Data.empty(DType.F32, bias.length);
      for (int e = 0; e < bias.length; e++) {
        correction.set(bias[e], e);
      }
    }
    return new MoeLayerWeights(
        Layout.STACKED.random(config, data),
        new RouterWeights(
            data.normal(config.weightDtype(), 1, config.numExperts(), config.hiddenSize()),
            null,
            correction,
            null,
            config.routing().expertScale() ? data.normal(DType.F32, 1, config.numExperts()) : null,
            config.routing().byTokenId() ? tokenExperts(config, data) : null),
        null,
        null);
  }

  /** Different experts for each id, in no order. */
  private static Tensor tokenExperts(MoeConfig config, Data data) {
    Tensor table = Data.empty(DType.I32, VOCABULARY, config.topK());
    for (int v = 0; v < VOCABULARY; v++) {
      int first = data.below(config.numExperts());
      for (int k = 0; k < config.topK(); k++) {
        table.set((first + 3 * k) % config.numExperts(), v, k);
      }
    }
    return table;
  }
}
