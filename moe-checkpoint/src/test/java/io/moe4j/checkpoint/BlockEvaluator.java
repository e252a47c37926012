package io.moe4j.checkpoint;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.jspecify.annotations.NullUnmarked;
import org.jspecify.annotations.Nullable;

/**
 * One MoE block in double precision, token by token, written for reading: it proves what the loader
 * hands out without any backend. Factors are applied unmerged.
 */
@NullUnmarked // a missing value fails the test where it is used
final class BlockEvaluator {
  private final MoeConfig config;
  private final MoeLayerWeights weights;
  private final IdentityHashMap<Tensor, double[]> dense = new IdentityHashMap<>();
  private final IdentityHashMap<LoraFactors, Map<Integer, Views>> factorViews =
      new IdentityHashMap<>();

  private record Views(Tensor a, Tensor b) {}

  private Views views(LoraFactors factors, int expert) {
    return factorViews
        .computeIfAbsent(factors, f -> new HashMap<>())
        .computeIfAbsent(expert, e -> new Views(factors.a(e), factors.b(e)));
  }

  /** What a token's way through the block gives. */
  @SuppressWarnings("ArrayRecordComponent")
  record Result(double[] output, double[] routed, int[] ids, double[] topkWeights) {}

  BlockEvaluator(MoeConfig config, MoeLayerWeights weights) {
    this.config = config;
    this.weights = weights;
  }

  Result forward(double[] x, LoraLayer lora) {
    double[] logits = linear(weights.router().weight(), weights.router().bias(), x);
    int[] ids = new int[config.topK()];
    double[] w = new double[config.topK()];
    route(logits, ids, w);
    double[] h = x;
    if (weights.latent() != null) {
      h = mapped(weights.latent().in(), null, x, lora.get(LoraTarget.LATENT_IN), 0);
    }
    double[] sum = new double[config.expertHiddenSize()];
    for (int k = 0; k < ids.length; k++) {
      double onInput = config.routerWeightOnInput() ? w[k] : 1;
      double onOutput = config.routerWeightOnInput() ? 1 : w[k];
      double[] in = Arrays.stream(h).map(v -> v * onInput).toArray();
      ExpertWeights.Expert e = weights.experts().expert(ids[k]);
      double[] y =
          mlp(
              e,
              config.activation(),
              in,
              lora.get(LoraTarget.GATE),
              lora.get(LoraTarget.UP),
              lora.get(LoraTarget.DOWN),
              ids[k]);
      for (int i = 0; i < sum.length; i++) {
        sum[i] += onOutput * y[i];
      }
    }
    double[] out = sum.clone();
    if (weights.latent() != null) {
      out = mapped(weights.latent().out(), null, sum, lora.get(LoraTarget.LATENT_OUT), 0);
    }
    if (weights.shared() != null) {
      double[] y =
          mlp(
              weights.shared().mlp(),
              config.sharedExpert().orElseThrow().activation(),
              x,
              lora.get(LoraTarget.SHARED_GATE),
              lora.get(LoraTarget.SHARED_UP),
              lora.get(LoraTarget.SHARED_DOWN),
              0);
      double gate = 1;
      Tensor sigmoidGate = weights.shared().sigmoidGate();
      if (sigmoidGate != null) {
        gate = sigmoid(mapped(sigmoidGate, null, x, lora.get(LoraTarget.SHARED_EXPERT_GATE), 0)[0]);
      }
      for (int i = 0; i < out.length; i++) {
        out[i] += gate * y[i];
      }
    }
    return new Result(out, sum, ids, w);
  }

  private double[] mlp(
      ExpertWeights.Expert e,
      Activation activation,
      double[] x,
      @Nullable LoraFactors gate,
      @Nullable LoraFactors up,
      @Nullable LoraFactors down,
      int expert) {
    e.projections().forEach(w -> scale(w.values(), w.scales().orElse(null)));
    double[] u = mapped(e.up().values(), e.upBias(), x, up, expert);
    double[] act = new double[u.length];
    double[] g = e.gate() == null ? u : mapped(e.gate().values(), e.gateBias(), x, gate, expert);
    for (int i = 0; i < act.length; i++) {
      act[i] = activate(activation, g[i], u[i]);
    }
    return mapped(e.down().values(), e.downBias(), act, down, expert);
  }

  private static double activate(Activation a, double g, double u) {
    return switch (a.kind()) {
      case SILU -> g * sigmoid(g) * u;
      case GELU_TANH ->
          0.5 * g * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (g + 0.044715 * g * g * g))) * u;
      case RELU2_NO_MUL -> Math.max(u, 0) * Math.max(u, 0);
      case SWIGLUOAI -> {
        double gc = Math.min(g, a.limit());
        double uc = Math.clamp(u, -a.limit(), a.limit());
        yield (uc + 1) * gc * sigmoid(1.702 * gc);
      }
      default -> throw new IllegalArgumentException("not evaluated here: " + a);
    };
  }

  private static double sigmoid(double z) {
    return 1 / (1 + Math.exp(-z));
  }

  /** {@code W x + b + B (A x)}. */
  private double[] mapped(
      Tensor w, @Nullable Tensor bias, double[] x, @Nullable LoraFactors lora, int expert) {
    double[] y = linear(w, bias, x);
    if (lora != null) {
      Views views = views(lora, expert);
      double[] delta = linear(views.b, null, linear(views.a, null, x));
      for (int i = 0; i < y.length; i++) {
        y[i] += delta[i];
      }
    }
    return y;
  }

  /** Makes a quantised matrix known as what it stands for. */
  private void scale(@Nullable Tensor t, @Nullable Tensor scales) {
    if (t != null && scales != null && !dense.containsKey(t)) {
      double[] values = t.toDoubles();
      double[] factors = scales.toDoubles();
      for (int i = 0; i < values.length; i++) {
        values[i] *= factors[i / (values.length / factors.length)];
      }
      dense.put(t, values);
    }
  }

  private double[] dense(Tensor t) {
    return dense.computeIfAbsent(t, Tensor::toDoubles);
  }

  private double[] linear(Tensor w, @Nullable Tensor bias, double[] x) {
    double[] y = bias == null ? new double[Math.toIntExact(w.size(0))] : bias.toDoubles();
    double[] dense = dense(w);
    for (int o = 0; o < y.length; o++) {
      for (int i = 0; i < x.length; i++) {
        y[o] += dense[o * x.length + i] * x[i];
      }
    }
    return y;
  }

  private static double[] softmax(double[] z) {
    double max = Arrays.stream(z).max().orElseThrow();
    double[] p = Arrays.stream(z).map(v -> Math.exp(v - max)).toArray();
    double sum = Arrays.stream(p).sum();
    return Arrays.stream(p).map(v -> v / sum).toArray();
  }

  private void route(double[] z, int[] ids, double[] w) {
    RoutingConfig r = config.routing();
    if (r.scoring() == RoutingConfig.Scoring.SPARSE_MIXER) {
      sparseMixer(z, r.jitter(), ids, w);
      return;
    }
    double[] scores =
        switch (r.scoring()) {
          case SOFTMAX -> softmax(z);
          case SIGMOID -> Arrays.stream(z).map(BlockEvaluator::sigmoid).toArray();
          case SOFTMAX_TOPK -> z;
          default -> throw new IllegalArgumentException("not evaluated here: " + r);
        };
    double[] choice = scores.clone();
    if (r.correctionBias()) {
      double[] bias = weights.router().correctionBias().toDoubles();
      for (int e = 0; e < choice.length; e++) {
        choice[e] += bias[e];
      }
    }
    keepBestGroups(choice, r);
    List<Integer> best =
        IntStream.range(0, choice.length)
            .boxed()
            .sorted(Comparator.comparingDouble((Integer e) -> -choice[e]))
            .limit(ids.length)
            .toList();
    for (int k = 0; k < ids.length; k++) {
      ids[k] = best.get(k);
      w[k] = scores[ids[k]];
    }
    if (r.scoring() == RoutingConfig.Scoring.SOFTMAX_TOPK) {
      System.arraycopy(softmax(w), 0, w, 0, w.length);
    }
    double sum = r.renormalize() ? Arrays.stream(w).sum() + r.epsilon() : 1;
    for (int k = 0; k < w.length; k++) {
      w[k] = w[k] / sum * r.scalingFactor();
    }
  }

  private static void keepBestGroups(double[] choice, RoutingConfig r) {
    int groups = r.numGroups();
    if (groups == 1) {
      return;
    }
    int size = choice.length / groups;
    double[] score = new double[groups];
    for (int g = 0; g < groups; g++) {
      double[] sorted = Arrays.copyOfRange(choice, g * size, (g + 1) * size);
      Arrays.sort(sorted);
      score[g] =
          r.groupScore() == RoutingConfig.GroupScore.MAX
              ? sorted[size - 1]
              : sorted[size - 1] + sorted[size - 2];
    }
    List<Integer> kept =
        IntStream.range(0, groups)
            .boxed()
            .sorted(Comparator.comparingDouble((Integer g) -> -score[g]))
            .limit(r.topkGroups())
            .toList();
    for (int e = 0; e < choice.length; e++) {
      if (!kept.contains(e / size)) {
        choice[e] = Double.NEGATIVE_INFINITY;
      }
    }
  }

  private static void sparseMixer(double[] z, double jitter, int[] ids, double[] w) {
    double[] current = z.clone();
    for (int k = 0; k < 2; k++) {
      int best = 0;
      for (int e = 1; e < z.length; e++) {
        best = current[e] > current[best] ? e : best;
      }
      double max = current[best];
      double[] masked = current.clone();
      for (int e = 0; e < z.length; e++) {
        if ((max - z[e]) / Math.max(Math.abs(z[e]), max) > 2 * jitter) {
          masked[e] = Double.NEGATIVE_INFINITY;
        }
      }
      ids[k] = best;
      w[k] = softmax(masked)[best];
      current[best] = Double.NEGATIVE_INFINITY;
    }
  }
}
