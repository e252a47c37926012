package io.moe4j.tck;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.LatentWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.SharedExpertWeights;
import io.moe4j.reference.ReferenceRouting;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** Routing rules and blocks for {@link BlockOpsConformanceTest}. */
final class BlockCases {
  /**
   * A routing rule.
   *
   * @param routing the rule
   * @param experts {@code E}
   * @param topK {@code K}
   * @param tokens {@code T}
   */
  record Route(RoutingConfig routing, int experts, int topK, int tokens) {
    MoeConfig config() {
      return MoeConfig.builder(4, 4, experts, topK).routing(routing).weightDtype(DType.F32).build();
    }

    @Override
    public String toString() {
      return "T=" + tokens + " E=" + experts + " K=" + topK + " " + routing;
    }

    /**
     * {@return the bias, of the size of the scores, or null where the rule has none}
     *
     * @param data random
     */
    double @Nullable [] correctionBias(Data data) {
      if (!routing.correctionBias()) {
        return null;
      }
      double deviation = routing.scoring() == Scoring.SOFTMAX ? 0.3 / experts : 0.3;
      double[] bias = new double[experts];
      for (int e = 0; e < experts; e++) {
        bias[e] = (float) (deviation * data.gaussian());
      }
      return bias;
    }

    /**
     * {@return logits whose choice does not hang on a rounding: it is the same when every logit is
     * off by up to 0.001}
     */
    double[] logits(Data data, double @Nullable [] bias) {
      return logits(data, bias, DType.F32);
    }

    /** {@return the same, as numbers that a dtype holds exactly} */
    double[] logits(Data data, double @Nullable [] bias, DType dtype) {
      Tensor rounded = Data.empty(dtype, experts);
      for (int attempt = 0; attempt < 1000; attempt++) {
        double[] z = new double[experts];
        for (int e = 0; e < experts; e++) {
          rounded.set(Math.max(-6, Math.min(6, 2 * data.gaussian())), e);
          z[e] = rounded.get(e);
        }
        int[] ids = ids(z, bias);
        boolean stable = true;
        for (int trial = 0; stable && trial < 6; trial++) {
          double[] off = Arrays.stream(z).map(v -> v + 0.002 * (data.uniform() - 0.5)).toArray();
          stable = Arrays.equals(ids, ids(off, bias));
        }
        if (stable) {
          return z;
        }
      }
      throw new IllegalStateException("no stable logits for " + this);
    }

    private int[] ids(double[] z, double @Nullable [] bias) {
      int[] ids = new int[topK];
      ReferenceRouting.route(routing, z, bias, ids, new double[topK]);
      return ids;
    }
  }

  private BlockCases() {}

  /**
   * {@return the bound on a topk weight's relative error: two exponentials of arguments up to 12 in
   * f32, a sum over E, two divisions, a factor}
   */
  static double tolerance(int experts) {
    return 2 * (Math.sqrt(experts) + 24) * Tolerance.unitRoundoff(DType.F32);
  }

  static Stream<Route> routes() {
    List<Route> routes = new ArrayList<>();
    int[][] sizes = {
      {1, 1, 3},
      {5, 5, 1},
      {8, 2, 33},
      {16, 2, 64},
      {60, 4, 7},
      {64, 8, 33},
      {128, 8, 1},
      {257, 8, 5},
      {512, 10, 3}
    };
    for (Scoring scoring :
        List.of(Scoring.SOFTMAX, Scoring.SOFTMAX_TOPK, Scoring.SIGMOID, Scoring.SQRT_SOFTPLUS)) {
      for (boolean renormalize : new boolean[] {false, true}) {
        for (int n = 0; n < sizes.length; n++) {
          boolean bias = n % 2 == 1;
          float scaling = n % 3 == 0 ? 1f : 2.5f;
          // one that shows in the sum, beside those that only keep it from being zero
          float epsilon = n % 3 == 0 ? 0f : n % 3 == 1 ? 1e-20f : 0.125f;
          routes.add(
              new Route(
                  RoutingConfig.builder(scoring)
                      .renormalize(renormalize)
                      .epsilon(epsilon)
                      .scalingFactor(scaling)
                      .correctionBias(bias)
                      .build(),
                  sizes[n][0],
                  sizes[n][1],
                  sizes[n][2]));
        }
      }
    }
    // experts, top_k, groups, groups kept, tokens
    int[][] grouped = {
      {16, 2, 8, 2, 1},
      {16, 2, 8, 2, 33},
      {16, 2, 8, 2, 64},
      {160, 6, 8, 3, 9},
      {256, 8, 8, 4, 9},
      {12, 3, 3, 1, 5},
      {9, 6, 3, 2, 5}
    };
    for (int[] g : grouped) {
      for (Scoring scoring : List.of(Scoring.SOFTMAX, Scoring.SIGMOID)) {
        for (boolean renormalize : new boolean[] {false, true}) {
          for (float scaling : new float[] {1f, 2.5f}) {
            boolean bias = scaling != 1f;
            GroupScore score = bias != renormalize ? GroupScore.SUM_OF_TOP2 : GroupScore.MAX;
            routes.add(
                new Route(
                    RoutingConfig.builder(scoring)
                        .renormalize(renormalize)
                        .epsilon(1e-20f)
                        .scalingFactor(scaling)
                        .groups(g[2], g[3], score)
                        .correctionBias(bias)
                        .build(),
                    g[0],
                    g[1],
                    g[4]));
          }
        }
      }
    }
    for (Scoring scoring : List.of(Scoring.SOFTMAX, Scoring.SIGMOID)) {
      RoutingConfig.Builder b = RoutingConfig.builder(scoring).renormalize(true);
      // floors above and below the sums of what two of eight scores come to
      for (float floor : new float[] {0.3f, 2.5f}) {
        routes.add(new Route(b.sumFloor(floor).build(), 8, 2, 9));
      }
      routes.add(new Route(b.sumFloor(0).expertScale(true).build(), 16, 4, 9));
      routes.add(
          new Route(
              RoutingConfig.builder(scoring).expertScale(true).correctionBias(true).build(),
              60,
              4,
              5));
    }
    for (float jitter : new float[] {0.01f, 0.1f, 0.5f}) {
      routes.add(new Route(RoutingConfig.sparseMixer(jitter), 16, 2, 33));
    }
    return routes.stream();
  }

  /**
   * A block around its experts.
   *
   * @param name for the report
   * @param config the layer
   */
  record Block(String name, MoeConfig config) {
    @Override
    public String toString() {
      return name
          + ", H="
          + config.hiddenSize()
          + " hidden "
          + config.inputDtype()
          + " weights "
          + config.weightDtype();
    }

    /** {@return random weights of everything the config has, and a router} */
    MoeLayerWeights weights(Data data, boolean routerBias) {
      int h = config.hiddenSize();
      DType dtype = config.weightDtype();
      RouterWeights router =
          new RouterWeights(
              data.normal(dtype, 1 / Math.sqrt(h), config.numExperts(), h),
              routerBias ? data.normal(dtype, 1, config.numExperts()) : null,
              config.routing().correctionBias()
                  ? data.normal(DType.F32, 0.3, config.numExperts())
                  : null,
              config.routing().inputNorm().isPresent() ? data.normal(dtype, 1, h) : null,
              null,
              null);
      SharedExpertWeights shared =
          config.sharedExpert().map(s -> shared(s, data, dtype)).orElse(null);
      int d = config.latentSize();
      LatentWeights latent =
          d == 0
              ? null
              : new LatentWeights(
                  data.normal(dtype, 1 / Math.sqrt(h), d, h),
                  data.normal(dtype, 1 / Math.sqrt(d), h, d));
      return new MoeLayerWeights(Layout.STACKED.random(config, data), router, shared, latent);
    }

    private SharedExpertWeights shared(SharedExpertConfig s, Data data, DType dtype) {
      int h = config.hiddenSize();
      int i = s.intermediateSize();
      Tensor gate = s.activation().isGated() ? data.normal(dtype, 1 / Math.sqrt(h), i, h) : null;
      return new SharedExpertWeights(
          ExpertWeights.Expert.plain(
              gate,
              data.normal(dtype, 1 / Math.sqrt(h), i, h),
              data.normal(dtype, 1 / Math.sqrt(i), h, i)),
          s.sigmoidGate() ? data.normal(dtype, 1 / Math.sqrt(h), 1, h) : null);
    }
  }

  static Stream<Block> blocks() {
    List<Block> blocks = new ArrayList<>();
    for (Grid.Dtypes d : Grid.DTYPES) {
      blocks.add(new Block("experts only", layer(d).build()));
      blocks.add(
          new Block(
              "router with a norm",
              layer(d)
                  .routing(RoutingConfig.SOFTMAX.toBuilder().inputNorm(new RmsNorm(0.01f)).build())
                  .build()));
      blocks.add(
          new Block(
              "shared expert",
              layer(d).sharedExpert(new SharedExpertConfig(29, Activation.SILU, false)).build()));
      blocks.add(
          new Block(
              "gated shared expert",
              layer(d).sharedExpert(new SharedExpertConfig(29, Activation.SILU, true)).build()));
      blocks.add(
          new Block(
              "shared expert without gate projection",
              layer(d)
                  .sharedExpert(new SharedExpertConfig(31, Activation.RELU2_NO_MUL, false))
                  .build()));
      blocks.add(
          new Block(
              "wide shared expert",
              MoeConfig.builder(160, 8, 2, 1)
                  .inputDtype(d.hidden())
                  .weightDtype(d.weights())
                  .lora(new LoraConfig(4, 64))
                  .sharedExpert(new SharedExpertConfig(272, Activation.GELU_TANH, true))
                  .build()));
      blocks.add(new Block("latent experts", layer(d).latentSize(20).build()));
      blocks.add(
          new Block(
              "latent experts and shared expert",
              layer(d)
                  .latentSize(20)
                  .sharedExpert(new SharedExpertConfig(29, Activation.RELU2_NO_MUL, false))
                  .build()));
    }
    return blocks.stream();
  }

  private static MoeConfig.Builder layer(Grid.Dtypes d) {
    return MoeConfig.builder(33, 8, 5, 2)
        .inputDtype(d.hidden())
        .weightDtype(d.weights())
        .lora(new LoraConfig(4, 64));
  }
}
