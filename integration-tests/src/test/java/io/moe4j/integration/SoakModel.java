package io.moe4j.integration;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import java.util.EnumMap;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.TreeMap;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * A model of two MoE layers, adapters in several versions, a few tokens, and the block's output for
 * every one of them, in double and with merged weights: nothing of the library computes the
 * expectation, and no adapter is ever mixed with another in it.
 */
final class SoakModel {
  static final int LAYERS = 2;
  static final int TOKENS = 12;
  static final int HIDDEN = 32;
  private static final int INTER = 24;
  private static final int EXPERTS = 6;
  private static final int TOP_K = 2;
  private static final int MAX_RANK = 12;

  /** The least distance, in logits, of the last chosen expert to the first left out. */
  private static final double CLEAR = 0.05;

  final int adapters;
  final int versions;
  final MoeConfig config;
  private final MoeLayerWeights[] weights = new MoeLayerWeights[LAYERS];
  private final LoraAdapter[][] loras;
  private final float[][][] inputs = new float[LAYERS][TOKENS][];
  private final double[][][] base = new double[LAYERS][TOKENS][];
  private final double[][][][][] expected;

  SoakModel(int adapters, int versions, int slots, int maxTokens) {
    this.adapters = adapters;
    this.versions = versions;
    config =
        MoeConfig.builder(HIDDEN, INTER, EXPERTS, TOP_K)
            .weightDtype(DType.F32)
            .lora(new LoraConfig(slots, MAX_RANK))
            .maxTokens(maxTokens)
            .build();
    SplittableRandom rng = new SplittableRandom(20261121);
    loras = new LoraAdapter[adapters][versions];
    for (int a = 0; a < adapters; a++) {
      for (int v = 0; v < versions; v++) {
        loras[a][v] = adapter(rng, a);
      }
    }
    expected = new double[LAYERS][adapters][versions][TOKENS][];
    for (int layer = 0; layer < LAYERS; layer++) {
      Expectation plain = new Expectation(rng);
      weights[layer] = plain.layerWeights();
      for (int t = 0; t < TOKENS; t++) {
        inputs[layer][t] = plain.clearToken(rng);
        base[layer][t] = plain.output(inputs[layer][t], null);
        for (int a = 0; a < adapters; a++) {
          for (int v = 0; v < versions; v++) {
            expected[layer][a][v][t] = plain.output(inputs[layer][t], loras[a][v].layer(layer));
          }
        }
      }
    }
  }

  static String name(int adapter) {
    return "adapter-" + adapter;
  }

  Map<Integer, MoeConfig> configs() {
    Map<Integer, MoeConfig> out = new TreeMap<>();
    IntStream.range(0, LAYERS).forEach(layer -> out.put(layer, config));
    return out;
  }

  MoeLayerWeights weights(int layer) {
    return weights[layer];
  }

  LoraAdapter adapter(int adapter, int version) {
    return loras[adapter][version];
  }

  float[] input(int layer, int token) {
    return inputs[layer][token];
  }

  /** The output row; adapter -1 = base. */
  double[] expected(int layer, int adapter, int version, int token) {
    return adapter < 0 ? base[layer][token] : expected[layer][adapter][version][token];
  }

  /** Targets, ranks and dtypes vary from adapter to adapter; down is always there. */
  private static LoraAdapter adapter(SplittableRandom rng, int number) {
    Map<Integer, LoraLayer> layers = new TreeMap<>();
    for (int layer = 0; layer < LAYERS; layer++) {
      DType dtype = number % 2 == 0 ? DType.F32 : DType.BF16;
      Map<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
      f.put(LoraTarget.DOWN, factors(rng, dtype, 1 + number % MAX_RANK, INTER, HIDDEN));
      if (number % 3 != 0) {
        f.put(LoraTarget.UP, factors(rng, dtype, 1 + number % 5, HIDDEN, INTER));
      }
      if (number % 3 == 1) {
        f.put(LoraTarget.GATE, factors(rng, dtype, 4, HIDDEN, INTER));
      }
      layers.put(layer, new LoraLayer(f));
    }
    return new LoraAdapter(name(number), layers);
  }

  private static LoraFactors factors(SplittableRandom rng, DType dtype, int rank, int in, int out) {
    return new LoraFactors(
        random(rng, dtype, 1, EXPERTS, rank, in), random(rng, dtype, 1, EXPERTS, out, rank));
  }

  private static Tensor random(SplittableRandom rng, DType dtype, double size, long... shape) {
    int n = 1;
    for (long s : shape) {
      n *= (int) s;
    }
    Tensor flat =
        dtype == DType.F32
            ? Tensor.ofFloats(new float[n], n)
            : Tensor.of(dtype, java.lang.foreign.MemorySegment.ofArray(new short[n]), n);
    for (int i = 0; i < n; i++) {
      flat.set((rng.nextDouble() * 2 - 1) * size, i);
    }
    return flat.reshape(shape);
  }

  /** One layer in double. */
  private static final class Expectation {
    private final Tensor router;
    private final Tensor[] gate = new Tensor[EXPERTS];
    private final Tensor[] up = new Tensor[EXPERTS];
    private final Tensor[] down = new Tensor[EXPERTS];

    Expectation(SplittableRandom rng) {
      router = random(rng, DType.F32, 1, EXPERTS, HIDDEN);
      for (int e = 0; e < EXPERTS; e++) {
        gate[e] = random(rng, DType.F32, 0.3, INTER, HIDDEN);
        up[e] = random(rng, DType.F32, 0.3, INTER, HIDDEN);
        down[e] = random(rng, DType.F32, 0.3, HIDDEN, INTER);
      }
    }

    MoeLayerWeights layerWeights() {
      return new MoeLayerWeights(
          new ExpertWeights(
              IntStream.range(0, EXPERTS)
                  .mapToObj(e -> ExpertWeights.Expert.plain(gate[e], up[e], down[e]))
                  .toList()),
          new RouterWeights(router, null, null),
          null,
          null);
    }

    /** A token whose choice of experts does not hang on rounding. */
    float[] clearToken(SplittableRandom rng) {
      while (true) {
        float[] x = new float[HIDDEN];
        for (int i = 0; i < HIDDEN; i++) {
          x[i] = (float) (rng.nextDouble() * 2 - 1);
        }
        double[] sorted = times(router.toDoubles(), x(x), EXPERTS);
        java.util.Arrays.sort(sorted);
        if (sorted[EXPERTS - TOP_K] - sorted[EXPERTS - TOP_K - 1] > CLEAR) {
          return x;
        }
      }
    }

    double[] output(float[] token, @Nullable LoraLayer lora) {
      double[] x = x(token);
      double[] logits = times(router.toDoubles(), x, EXPERTS);
      int[] best =
          IntStream.range(0, EXPERTS)
              .boxed()
              .sorted((a, b) -> Double.compare(logits[b], logits[a]))
              .limit(TOP_K)
              .mapToInt(Integer::intValue)
              .toArray();
      double total = 0;
      for (int e : best) {
        total += Math.exp(logits[e]);
      }
      double[] y = new double[HIDDEN];
      for (int e : best) {
        double[] g = times(merged(gate[e], lora, LoraTarget.GATE, e), x, INTER);
        double[] u = times(merged(up[e], lora, LoraTarget.UP, e), x, INTER);
        double[] a = new double[INTER];
        for (int i = 0; i < INTER; i++) {
          a[i] = g[i] / (1 + Math.exp(-g[i])) * u[i];
        }
        double[] d = times(merged(down[e], lora, LoraTarget.DOWN, e), a, HIDDEN);
        for (int h = 0; h < HIDDEN; h++) {
          y[h] += Math.exp(logits[e]) / total * d[h];
        }
      }
      return y;
    }

    /** {@code W + B . A} of one expert. */
    private static double[] merged(
        Tensor w, @Nullable LoraLayer lora, LoraTarget target, int expert) {
      double[] m = w.toDoubles();
      LoraFactors f = lora == null ? null : lora.get(target);
      if (f != null) {
        double[] a = f.a(expert).toDoubles();
        double[] b = f.b(expert).toDoubles();
        int in = f.inFeatures();
        for (int o = 0; o < f.outFeatures(); o++) {
          for (int j = 0; j < f.rank(); j++) {
            for (int i = 0; i < in; i++) {
              m[o * in + i] += b[o * f.rank() + j] * a[j * in + i];
            }
          }
        }
      }
      return m;
    }

    private static double[] times(double[] w, double[] x, int rows) {
      double[] y = new double[rows];
      for (int r = 0; r < rows; r++) {
        for (int i = 0; i < x.length; i++) {
          y[r] += w[r * x.length + i] * x[i];
        }
      }
      return y;
    }

    private static double[] x(float[] token) {
      double[] x = new double[token.length];
      java.util.Arrays.setAll(x, i -> token[i]);
      return x;
    }
  }
}
