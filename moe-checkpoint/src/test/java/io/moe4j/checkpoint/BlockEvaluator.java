package io.moe4j.checkpoint;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RmsNorm;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.reference.Dequantize;
import io.moe4j.reference.QuantizeActivation;
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
  private final boolean quantisedActivations;
  private final IdentityHashMap<Object, double[]> dense = new IdentityHashMap<>();
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
    this(config, weights, false);
  }

  /**
   * @param quantisedActivations whether quantised maps see their input as the checkpoint means it
   */
  BlockEvaluator(MoeConfig config, MoeLayerWeights weights, boolean quantisedActivations) {
    this.config = config;
    this.weights = weights;
    this.quantisedActivations = quantisedActivations;
  }

  Result forward(double[] x, LoraLayer lora) {
    return forward(x, -1, lora);
  }

  Result forward(double[] x, int tokenId, LoraLayer lora) {
    Tensor norm = weights.router().norm();
    double[] read = norm == null ? x : normed(x, norm, config.routing().inputNorm().orElseThrow());
    double[] logits =
        mapped(
            weights.router().weight(),
            weights.router().bias(),
            read,
            lora.get(LoraTarget.ROUTER),
            0);
    int[] ids = new int[config.topK()];
    double[] w = new double[config.topK()];
    route(logits, tokenId, ids, w);
    double[] h = x;
    if (weights.inputNorm() != null) {
      h = normed(x, weights.inputNorm(), config.inputNorm().orElseThrow());
    }
    if (weights.latent() != null) {
      h = mapped(weights.latent().in(), null, x, lora.get(LoraTarget.LATENT_IN), 0);
    }
    double[] sum = new double[config.expertHiddenSize()];
    for (int k = 0; k < ids.length; k++) {
      double onInput = config.routerWeightOnInput() ? w[k] : 1;
      double onOutput = config.routerWeightOnInput() ? 1 : w[k];
      if (ids[k] >= config.numExperts()) {
        for (int i = 0; i < sum.length; i++) {
          sum[i] += w[k] * x[i];
        }
        continue;
      }
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
        out[i] /= config.sharedExpert().orElseThrow().combine() == Combine.AVERAGE ? 2 : 1;
      }
    }
    if (weights.outputBias() != null) {
      double[] bias = weights.outputBias().toDoubles();
      for (int i = 0; i < out.length; i++) {
        out[i] += bias[i];
      }
    }
    return new Result(out, sum, ids, w);
  }

  private static double[] normed(double[] x, Tensor norm, RmsNorm rule) {
    double mean = Arrays.stream(x).map(v -> v * v).average().orElseThrow();
    double[] factors = norm.toDoubles();
    return IntStream.range(0, x.length)
        .mapToDouble(i -> x[i] / Math.sqrt(mean + rule.epsilon()) * factors[i])
        .toArray();
  }

  private double[] mlp(
      ExpertWeights.Expert e,
      Activation activation,
      double[] x,
      @Nullable LoraFactors gate,
      @Nullable LoraFactors up,
      @Nullable LoraFactors down,
      int expert) {
    double[] u = mapped(e.up(), e.upBias(), x, up, expert);
    double[] act = new double[u.length];
    double[] g = e.gate() == null ? u : mapped(e.gate(), e.gateBias(), x, gate, expert);
    for (int i = 0; i < act.length; i++) {
      act[i] = activate(activation, g[i], u[i]);
    }
    return mapped(e.down(), e.downBias(), act, down, expert);
  }

  private static double activate(Activation a, double g, double u) {
    return switch (a.kind()) {
      case SILU -> {
        double gc = Math.min(g, a.limit());
        yield gc * sigmoid(gc) * Math.clamp(u, -(double) a.limit(), a.limit());
      }
      case SWIGLU_STEP ->
          Math.min(g * sigmoid(g), a.limit()) * Math.clamp(u, -(double) a.limit(), a.limit());
      case GELU_TANH ->
          0.5 * g * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (g + 0.044715 * g * g * g))) * u;
      case RELU2_NO_MUL -> Math.max(u, 0) * Math.max(u, 0);
      case SWIGLUOAI -> {
        double gc = Math.min(g, a.limit());
        double uc = Math.clamp(u, -a.limit(), a.limit());
        yield (uc + 1) * gc * sigmoid(a.alpha() * gc);
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
    addDelta(y, x, lora, expert);
    return y;
  }

  private void addDelta(double[] y, double[] x, @Nullable LoraFactors lora, int expert) {
    if (lora != null) {
      Views views = views(lora, expert);
      double[] delta = linear(views.b, null, linear(views.a, null, x));
      for (int i = 0; i < y.length; i++) {
        y[i] += delta[i];
      }
    }
  }

  /** The same of a map that may be quantised; the delta reads the input as it is. */
  private double[] mapped(
      Weight w, @Nullable Tensor bias, double[] x, @Nullable LoraFactors lora, int expert) {
    double[] values =
        dense.computeIfAbsent(
            w, k -> Arrays.stream(Dequantize.all(w)).flatMapToDouble(Arrays::stream).toArray());
    double[] seen = quantisedActivations ? QuantizeActivation.apply(w, x) : x;
    double[] y = bias == null ? new double[Math.toIntExact(w.out())] : bias.toDoubles();
    multiply(values, seen, y);
    addDelta(y, x, lora, expert);
    return y;
  }

  private double[] dense(Tensor t) {
    return dense.computeIfAbsent(t, k -> t.toDoubles());
  }

  private double[] linear(Tensor w, @Nullable Tensor bias, double[] x) {
    double[] y = bias == null ? new double[Math.toIntExact(w.size(0))] : bias.toDoubles();
    multiply(dense(w), x, y);
    return y;
  }

  private static void multiply(double[] dense, double[] x, double[] y) {
    for (int o = 0; o < y.length; o++) {
      for (int i = 0; i < x.length; i++) {
        y[o] += dense[o * x.length + i] * x[i];
      }
    }
  }

  private static double[] softmax(double[] z) {
    double max = Arrays.stream(z).max().orElseThrow();
    double[] p = Arrays.stream(z).map(v -> Math.exp(v - max)).toArray();
    double sum = Arrays.stream(p).sum();
    return Arrays.stream(p).map(v -> v / sum).toArray();
  }

  private void route(double[] z, int tokenId, int[] ids, double[] w) {
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
          case SQRT_SOFTPLUS ->
              Arrays.stream(z).map(v -> Math.sqrt(Math.log1p(Math.exp(v)))).toArray();
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
    Tensor table = weights.router().tokenExperts();
    for (int k = 0; k < ids.length; k++) {
      ids[k] = table == null ? best.get(k) : (int) table.get(tokenId, k);
      w[k] = scores[ids[k]];
    }
    if (r.scoring() == RoutingConfig.Scoring.SOFTMAX_TOPK) {
      System.arraycopy(softmax(w), 0, w, 0, w.length);
    }
    double sum = r.renormalize() ? Math.max(Arrays.stream(w).sum() + r.epsilon(), r.sumFloor()) : 1;
    Tensor scale = weights.router().expertScale();
    for (int k = 0; k < w.length; k++) {
      w[k] = w[k] / sum * r.scalingFactor() * (scale == null ? 1 : scale.get(ids[k]));
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
