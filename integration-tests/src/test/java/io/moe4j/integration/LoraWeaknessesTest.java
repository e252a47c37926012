package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.catchThrowableOfType;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.UnsupportedConfigException;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.DisplayName;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * Weaknesses that vLLM's LoRA path was reported to have, tried on every backend of the class path
 * that says it takes adapters. The expectation merges each adapter into the weights, in double, one
 * token at a time.
 */
class LoraWeaknessesTest {
  private static final int H = 40;
  private static final int I = 24;
  private static final int E = 6;
  private static final int K = 2;
  private static final int MAX_RANK = 256;
  private static final int[] RANKS = {4, 200, 1};
  private static final @Nullable String[] TOKENS = {"r4", null, "r200", "r1", "r4", "r200", null};

  private final SplittableRandom random = new SplittableRandom(15);
  private final double[][][] gate = matrices(E, I, H);
  private final double[][][] up = matrices(E, I, H);
  private final double[][][] down = matrices(E, H, I);
  private final Delta[] deltas = IntStream.of(RANKS).mapToObj(Delta::new).toArray(Delta[]::new);
  private final Tensor hidden = tensor(matrices(1, TOKENS.length, H));
  private final int[] ids = new int[TOKENS.length * K];
  private final float[] topkWeights = new float[TOKENS.length * K];

  LoraWeaknessesTest() {
    for (int t = 0; t < TOKENS.length; t++) {
      for (int k = 0; k < K; k++) {
        ids[t * K + k] = (t + k * 2) % E;
        topkWeights[t * K + k] = (float) (0.2 + 0.5 * random.nextDouble());
      }
    }
  }

  /** Factors of one rank for gate, up and down of every expert. */
  private final class Delta {
    final String name;
    final double[][][] gateA;
    final double[][][] gateB;
    final double[][][] upA;
    final double[][][] upB;
    final double[][][] downA;
    final double[][][] downB;

    Delta(int rank) {
      name = "r" + rank;
      gateA = matrices(E, rank, H);
      gateB = matrices(E, I, rank);
      upA = matrices(E, rank, H);
      upB = matrices(E, I, rank);
      downA = matrices(E, rank, I);
      downB = matrices(E, H, rank);
    }

    LoraAdapter adapter(int first, int count) {
      EnumMap<LoraTarget, LoraFactors> f = new EnumMap<>(LoraTarget.class);
      f.put(LoraTarget.GATE, factors(gateA, gateB, first, count));
      f.put(LoraTarget.UP, factors(upA, upB, first, count));
      f.put(LoraTarget.DOWN, factors(downA, downB, first, count));
      return new LoraAdapter(name, Map.of(0, new LoraLayer(f)));
    }

    private static LoraFactors factors(double[][][] a, double[][][] b, int first, int count) {
      return new LoraFactors(tensor(a).narrow(0, first, count), tensor(b).narrow(0, first, count));
    }
  }

  /** Values that a float holds exactly, so that both sides read the same numbers. */
  private double[][][] matrices(int n, int rows, int columns) {
    double[][][] m = new double[n][rows][columns];
    double scale = 1 / Math.sqrt(columns);
    for (double[][] one : m) {
      for (double[] row : one) {
        for (int c = 0; c < columns; c++) {
          row[c] = (float) (scale * (2 * random.nextDouble() - 1));
        }
      }
    }
    return m;
  }

  private static Tensor tensor(double[][][] m) {
    int rows = m[0].length;
    int columns = m[0][0].length;
    float[] flat = new float[m.length * rows * columns];
    int i = 0;
    for (double[][] one : m) {
      for (double[] row : one) {
        for (double v : row) {
          flat[i++] = (float) v;
        }
      }
    }
    return m.length == 1
        ? Tensor.ofFloats(flat, rows, columns)
        : Tensor.ofFloats(flat, m.length, rows, columns);
  }

  private double[] expected(boolean weightOnInput) {
    double[] out = new double[TOKENS.length * H];
    for (int t = 0; t < TOKENS.length; t++) {
      Delta d = delta(TOKENS[t]);
      for (int k = 0; k < K; k++) {
        int e = ids[t * K + k];
        double w = topkWeights[t * K + k];
        double[] x = new double[H];
        for (int h = 0; h < H; h++) {
          x[h] = hidden.get(t, h) * (weightOnInput ? w : 1);
        }
        double[] g = times(d == null ? gate[e] : merged(gate[e], d.gateA[e], d.gateB[e]), x);
        double[] u = times(d == null ? up[e] : merged(up[e], d.upA[e], d.upB[e]), x);
        double[] act = new double[I];
        for (int i = 0; i < I; i++) {
          act[i] = g[i] / (1 + Math.exp(-g[i])) * u[i];
        }
        double[] y = times(d == null ? down[e] : merged(down[e], d.downA[e], d.downB[e]), act);
        for (int h = 0; h < H; h++) {
          out[t * H + h] += y[h] * (weightOnInput ? 1 : w);
        }
      }
    }
    return out;
  }

  private @Nullable Delta delta(@Nullable String name) {
    return Stream.of(deltas).filter(d -> d.name.equals(name)).findFirst().orElse(null);
  }

  private static double[][] merged(double[][] w, double[][] a, double[][] b) {
    double[][] m = new double[w.length][];
    for (int o = 0; o < w.length; o++) {
      m[o] = w[o].clone();
      for (int r = 0; r < a.length; r++) {
        for (int i = 0; i < m[o].length; i++) {
          m[o][i] += b[o][r] * a[r][i];
        }
      }
    }
    return m;
  }

  private static double[] times(double[][] m, double[] x) {
    double[] y = new double[m.length];
    for (int o = 0; o < y.length; o++) {
      for (int i = 0; i < x.length; i++) {
        y[o] += m[o][i] * x[i];
      }
    }
    return y;
  }

  private static MoeConfig.Builder config(FoundBackend backend) {
    return MoeConfig.builder(H, I, E, K)
        .weightDtype(DType.F32)
        .activationFormat(backend.activationFormat())
        .lora(new LoraConfig(RANKS.length, MAX_RANK))
        .maxTokens(TOKENS.length);
  }

  /** One forward of experts {@code first..first+count-1} with all adapters in one batch. */
  private Tensor run(MoeOracle oracle, String backend, MoeConfig c, int first, int count) {
    MoeLayerWeights weights =
        new MoeLayerWeights(
            new ExpertWeights(
                IntStream.range(first, first + count)
                    .mapToObj(e ->
                        ExpertWeights.Expert.plain(
                            tensor(new double[][][] {gate[e]}),
                            tensor(new double[][][] {up[e]}),
                            tensor(new double[][][] {down[e]})))
                    .toList()),
            null,
            null,
            null);
    Tensor output = Tensor.ofFloats(new float[TOKENS.length * H], TOKENS.length, H);
    try (AdapterRegistry registry = AdapterRegistry.builder(Map.of(0, c)).build();
        MoeLayer layer = MoeLayer.builder(c, weights).oracle(oracle).backend(backend).build()) {
      for (Delta d : deltas) {
        registry.load(d.adapter(first, count));
      }
      try (AdapterBatch batch = registry.batch(java.util.Arrays.asList(TOKENS))) {
        layer.forward(
            MoeForward.of(hidden, output)
                .withTopk(
                    Tensor.ofInts(ids, TOKENS.length, K),
                    Tensor.ofFloats(topkWeights, TOKENS.length, K))
                .withLora(batch.context(0)));
      }
    }
    return output;
  }

  static List<String> loraBackends() {
    try (MoeOracle oracle = MoeOracle.discover()) {
      return oracle.catalog().backends().stream()
          .filter(b -> b.supportsLora() && b.deviceType().equals(DeviceType.CPU))
          .map(FoundBackend::name)
          .toList();
    }
  }

  private static void assertClose(double[] actual, double[] expected) {
    double error = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    assertThat(Math.sqrt(error / norm)).isLessThan(1e-5);
  }

  @ParameterizedTest
  @MethodSource("loraBackends")
  @DisplayName("15, 18: ranks 1, 4 and 200 in one batch under maxRank 256, none of them ignored")
  void ranksMix(String name) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      FoundBackend backend = oracle.catalog().backend(name).orElseThrow();
      Tensor output = run(oracle, name, config(backend).build(), 0, E);
      assertClose(output.toDoubles(), expected(false));
    }
  }

  @ParameterizedTest
  @MethodSource("loraBackends")
  @DisplayName("19: router weight on input and LoRA give what merged weights give")
  void routerWeightOnInput(String name) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      FoundBackend backend = oracle.catalog().backend(name).orElseThrow();
      MoeConfig c = config(backend).routerWeightOnInput(true).build();
      Tensor output = run(oracle, name, c, 0, E);
      assertClose(output.toDoubles(), expected(true));
    }
  }

  @ParameterizedTest
  @MethodSource("loraBackends")
  @DisplayName("14: expert parallelism and LoRA: the parts of three ranks add up")
  void expertParallel(String name) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      FoundBackend backend = oracle.catalog().backend(name).orElseThrow();
      double[] sum = new double[TOKENS.length * H];
      for (int rank = 0; rank < 3; rank++) {
        MoeConfig c = config(backend).parallel(ParallelConfig.expert(3, rank)).build();
        double[] part = run(oracle, name, c, 2 * rank, 2).toDoubles();
        for (int i = 0; i < sum.length; i++) {
          sum[i] += part[i];
        }
      }
      assertClose(sum, expected(false));
    }
  }

  @ParameterizedTest
  @MethodSource("loraBackends")
  @DisplayName("13: quantised weights and LoRA where they are not supported: a reason, no crash")
  void quantisedWithLora(String name) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      FoundBackend backend = oracle.catalog().backend(name).orElseThrow();
      MoeConfig c =
          config(backend)
              .quantScheme(
                  QuantScheme.FP8_BLOCK.toBuilder()
                      .activations(ActivationQuant.FP8_PER_BLOCK)
                      .build())
              .quantizedActivations(true)
              .build();
      if (name.endsWith("-reference")) {
        // These compute them; the recorded outputs are in GoldenTest.
        assertThat(oracle.select(c, Platform.cpuOnly(), name).chosenBackend().name())
            .isEqualTo(name);
        return;
      }
      UnsupportedConfigException e =
          catchThrowableOfType(
              UnsupportedConfigException.class, () -> oracle.select(c, Platform.cpuOnly(), name));
      assertThat(e).isNotNull();
      assertThat(e.selection().candidate(name).orElseThrow().support().reasons())
          .extracting(Support.Reason::code)
          .contains(Support.Code.QUANTIZATION);
    }
  }

  @ParameterizedTest
  @MethodSource("loraBackends")
  @DisplayName("1: a backend for one activation format is refused for the other")
  void otherFormat(String name) {
    try (MoeOracle oracle = MoeOracle.discover()) {
      FoundBackend backend = oracle.catalog().backend(name).orElseThrow();
      ActivationFormat other =
          backend.activationFormat() == ActivationFormat.STANDARD
              ? ActivationFormat.BATCHED
              : ActivationFormat.STANDARD;
      UnsupportedConfigException e =
          catchThrowableOfType(
              UnsupportedConfigException.class,
              () ->
                  oracle.select(
                      config(backend).activationFormat(other).build(), Platform.cpuOnly(), name));
      assertThat(e).hasMessageContaining("activations, the layer has " + other);
    }
  }
}
