package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.oracle.MoeForward;
import io.moe4j.tck.GpuTest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Objects;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * The sizes that vLLM tests its fused MoE-LoRA kernel with, and the ways of one token and of packed
 * weights with adapters, on the layer as a whole, against float64.
 */
@GpuTest
class GpuLoraGridTest {
  /** Most cases differ in adapters and tokens only. */
  private static @Nullable SharedExperts shared;

  @BeforeAll
  static void share() {
    shared = new SharedExperts();
  }

  @AfterAll
  static void giveBack() {
    if (shared != null) {
      shared.close();
    }
  }

  private static GpuLayer layer(MoeConfig c) {
    double deviation = 1 / Math.sqrt(c.hiddenSize());
    double deviation2 = 1 / Math.sqrt(c.intermediateSize());
    return new GpuLayer(c, Objects.requireNonNull(shared).of(c, deviation, deviation2));
  }

  static Stream<Arguments> adapters() {
    List<Arguments> all = new ArrayList<>();
    for (int rank : new int[] {16, 32, 64}) {
      for (int slots : new int[] {4, 6, 16}) {
        for (int topK : new int[] {6, 12}) {
          all.add(Arguments.of(100, topK, 64, slots, 1408, 2048, rank, 1e-2));
        }
      }
    }
    for (int tokens : new int[] {1, 2, 4, 8}) {
      for (int topK : new int[] {1, 2}) {
        for (int experts : new int[] {64, 128}) {
          for (int slots : new int[] {4, 8}) {
            if (tokens * topK * 8 <= experts * slots) {
              all.add(Arguments.of(tokens, topK, experts, slots, 1408, 2048, 16, 1e-2));
              all.add(Arguments.of(tokens, topK, experts, slots, 1408, 2048, 32, 1e-2));
            }
          }
        }
      }
    }
    for (int rank : new int[] {128, 256}) {
      all.add(Arguments.of(8, 2, 4, 2, 256, 256, rank, 2e-2));
    }
    for (int rank : new int[] {4, 8}) {
      for (int tokens : new int[] {16, 100}) {
        for (int experts : new int[] {8, 64}) {
          all.add(Arguments.of(tokens, 2, experts, 4, 1408, 2048, rank, 1e-2));
        }
      }
    }
    for (int rank : new int[] {8, 16, 32, 64}) {
      for (int tokens : new int[] {16, 64}) {
        all.add(Arguments.of(tokens, 2, 8, 4, 2048, 4096, rank, 2e-2));
      }
    }
    return all.stream();
  }

  /**
   * vLLM's tolerance is relative there: its data are positive and large. Here the deltas are as
   * large as the base result and of either sign, so the error is taken of the row as a whole.
   */
  @ParameterizedTest(name = "T={0} K={1} E={2} slots {3} I={4} H={5} rank {6}")
  @MethodSource("adapters")
  void adapters(
      int tokens,
      int topK,
      int experts,
      int slots,
      int intermediate,
      int hidden,
      int rank,
      double tolerance) {
    LoraConfig lora = new LoraConfig(slots, rank);
    MoeConfig config =
        MoeConfig.builder(hidden, intermediate, experts, topK).maxTokens(tokens).lora(lora).build();
    try (GpuLayer g = layer(config)) {
      checkAdapters(g, tokens, tolerance);
    }
  }

  static Stream<Arguments> oneToken() {
    List<Arguments> all = new ArrayList<>();
    int[][] sizes = {
      {64, 128, 8},
      {128, 64, 24},
      {768, 2048, 16},
      {832, 264, 72},
      {1472, 512, 200},
      {2880, 264, 64}
    };
    for (int topK = 1; topK <= 9; topK++) {
      for (int i = 0; i < sizes.length; i++) {
        int[] s = sizes[i];
        all.add(Arguments.of(topK, s[0], s[1], s[2], (i + topK) % 2 == 0, topK >= 4 && i % 3 == 1));
      }
    }
    return all.stream();
  }

  /** The way of a single token, with every part that its sum may have. */
  @ParameterizedTest(name = "K={0} I={1} H={2} rank {3} bias {4} map {5}")
  @MethodSource
  void oneToken(int topK, int intermediate, int hidden, int rank, boolean bias, boolean map) {
    MoeConfig.Builder b =
        MoeConfig.builder(hidden, intermediate, 16, topK)
            .maxTokens(1)
            .expertBias(bias)
            .routerWeightOnInput(topK == 1 && bias)
            .lora(new LoraConfig(3, rank));
    if (map) {
      b.parallel(ParallelConfig.expert(2, 0))
          .expertMap(GpuLayer.someLocal(16, 2, new Random(topK)));
    }
    try (GpuLayer g = layer(b.build())) {
      checkAdapters(g, 1, 1e-2);
    }
  }

  static Stream<Arguments> mxfp4() {
    return Stream.of(ActivationFormat.values())
        .flatMap(format -> IntStream.of(1, 3, 40, 200, 600).mapToObj(t -> Arguments.of(format, t)));
  }

  /** gpt-oss as it is published, but narrower inside, so that the reference takes seconds. */
  @ParameterizedTest(name = "{0}, T={1}")
  @MethodSource
  void mxfp4(ActivationFormat format, int tokens) {
    MoeConfig config =
        MoeConfig.builder(2880, 736, 16, 4)
            .quantScheme(QuantScheme.MXFP4)
            .activation(Activation.SWIGLUOAI)
            .expertBias(true)
            .activationFormat(format)
            .maxTokens(tokens)
            .lora(new LoraConfig(4, 24))
            .build();
    try (GpuLayer g = layer(config)) {
      checkAdapters(g, tokens, 1e-2);
    }
  }

  /**
   * A mixed batch against float64, and its bits without adapters.
   *
   * @param tolerance of a token's relative L2 error
   */
  static void checkAdapters(GpuLayer g, int tokens, double tolerance) {
    Random random = new Random(42);
    LoraConfig lora = g.config.lora().orElseThrow();
    int hidden = g.config.hiddenSize();
    int topK = g.config.topK();
    for (int s = 0; s < lora.maxLoras(); s++) {
      g.load("a" + s, lora.maxRank());
    }
    Tensor hostIn = g.host(1, tokens, hidden);
    Tensor in = g.empty(DType.BF16, tokens, hidden);
    g.put(hostIn, in);
    Tensor ids = g.empty(DType.I32, tokens, topK);
    Tensor weights = g.empty(DType.F32, tokens, topK);
    Tensor out = g.empty(DType.F32, tokens, hidden);
    List<@Nullable String> names = new ArrayList<>();
    for (int t = 0; t < tokens; t++) {
      names.add("a" + random.nextInt(lora.maxLoras()));
    }
    MoeForward request = MoeForward.of(in, out).topkInto(ids, weights);
    try (AdapterBatch batch = Objects.requireNonNull(g.registry).batch(names)) {
      g.layer.forward(request.withLora(batch.context(0)));
      g.device.defaultStream().synchronize();
    }
    Tensor chosen = g.download(ids);
    Tensor weighted = g.download(weights);
    Tensor result = g.download(out);
    GpuLayer.compared(tokens)
        .parallel()
        .forEach(t -> {
          double[] truth = g.reference(t, hostIn, chosen, weighted, names.get(t));
          double error = error(result.select(0, t).toDoubles(), truth);
          assertThat(error).as("token %d", t).isLessThanOrEqualTo(tolerance);
        });
    noAdapterIsTheBaseLayer(g, request, tokens);
  }

  /** Early exits: every slot -1, with LoRA on, writes the bits of the base layer. */
  private static void noAdapterIsTheBaseLayer(GpuLayer g, MoeForward request, int tokens) {
    g.layer.forward(request);
    g.device.defaultStream().synchronize();
    float[] base = g.get(request.output());
    List<@Nullable String> none = new ArrayList<>(Collections.nCopies(tokens, (String) null));
    try (AdapterBatch batch = Objects.requireNonNull(g.registry).batch(none)) {
      g.layer.forward(request.withLora(batch.context(0)));
      g.device.defaultStream().synchronize();
      assertThat(Arrays.equals(g.get(request.output()), base)).as("bits of the base").isTrue();
    }
  }

  private static double error(double[] actual, double[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += Math.pow(actual[i] - expected[i], 2);
      norm += Math.pow(expected[i], 2);
    }
    return Math.sqrt(difference / norm);
  }
}
