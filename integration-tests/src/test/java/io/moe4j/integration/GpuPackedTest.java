package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.backend.marlin.MarlinOptions;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.tck.GpuTest;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Layers whose weights stay packed on a card, in bf16, against float64 and against themselves. */
@GpuTest
class GpuPackedTest {
  private static final int HIDDEN = 704;
  private static final int INTERMEDIATE = 352;

  static List<QuantScheme> schemes() {
    QuantScheme.Builder int4 = QuantScheme.builder(Format.INT4);
    QuantScheme.Builder int8 = QuantScheme.builder(Format.INT8);
    return List.of(
        QuantScheme.int4(128),
        int4.group(32).symmetric(false).actOrder(true).build(),
        int4.group(16).symmetric(true).actOrder(false).build(),
        int8.group(64).symmetric(false).build(),
        QuantScheme.int8(QuantScheme.ALL),
        QuantScheme.builder(Format.FP8).perChannel().build(),
        QuantScheme.FP8_BLOCK,
        QuantScheme.MXFP4,
        QuantScheme.NVFP4);
  }

  static Stream<Arguments> cases() {
    List<Arguments> all = new ArrayList<>();
    for (QuantScheme s : schemes()) {
      for (int tokens : new int[] {1, 3, 40, 200, 1000}) {
        all.add(Arguments.of(s, ActivationFormat.STANDARD, tokens));
      }
      all.add(Arguments.of(s, ActivationFormat.BATCHED, 40));
    }
    return all.stream();
  }

  private static MoeConfig.Builder config(ActivationFormat format, int tokens) {
    return MoeConfig.builder(HIDDEN, INTERMEDIATE, 8, 4)
        .activationFormat(format)
        .expertBias(true)
        .maxTokens(tokens)
        .lora(new LoraConfig(3, 24));
  }

  private static GpuLayer layer(MoeConfig config) {
    boolean batched = config.activationFormat() == ActivationFormat.BATCHED;
    return new GpuLayer(
        config,
        1 / Math.sqrt(HIDDEN),
        1 / Math.sqrt(INTERMEDIATE),
        batched ? "batched-marlin" : "marlin");
  }

  /** Tiles of every height, single pairs, mixed adapters. */
  @ParameterizedTest(name = "{0}, {1}, T={2}")
  @MethodSource("cases")
  void agreesWithFloat64(QuantScheme scheme, ActivationFormat format, int tokens) {
    try (GpuLayer g = layer(config(format, tokens).quantScheme(scheme).build())) {
      GpuLoraGridTest.checkAdapters(g, tokens, 1e-2);
    }
  }

  /**
   * Many experts of 48 to 72 rows: short blocks of one warpgroup, which need more of them than
   * smaller layers have.
   */
  @ParameterizedTest(name = "{0}, T={1}")
  @MethodSource("manyExperts")
  void manyExpertsAgreeWithFloat64(QuantScheme scheme, int tokens) {
    MoeConfig config =
        MoeConfig.builder(1664, 256, 64, 8)
            .quantScheme(scheme)
            .maxTokens(tokens)
            .lora(new LoraConfig(3, 24))
            .build();
    try (GpuLayer g = new GpuLayer(config, 1 / Math.sqrt(1664), 1 / Math.sqrt(256), "marlin")) {
      GpuLoraGridTest.checkAdapters(g, tokens, 1e-2);
    }
  }

  static Stream<Arguments> manyExperts() {
    return Stream.of(QuantScheme.int4(128), QuantScheme.FP8_BLOCK)
        .flatMap(s -> Stream.of(Arguments.of(s, 400), Arguments.of(s, 480), Arguments.of(s, 570)));
  }

  private static final QuantScheme ORDERED =
      QuantScheme.builder(Format.INT4).group(32).symmetric(false).actOrder(true).build();

  static Stream<Arguments> twoSchemes() {
    List<Arguments> all = new ArrayList<>();
    List<List<QuantScheme>> pairs =
        List.of(
            List.of(QuantScheme.int4(128), QuantScheme.int8(64)),
            List.of(ORDERED, QuantScheme.FP8_BLOCK),
            List.of(QuantScheme.MXFP4, ORDERED),
            List.of(QuantScheme.NVFP4, QuantScheme.int4(16)));
    for (List<QuantScheme> p : pairs) {
      for (int tokens : new int[] {1, 3, 40, 200, 1000}) {
        all.add(Arguments.of(p.getFirst(), p.getLast(), ActivationFormat.STANDARD, tokens));
      }
      all.add(Arguments.of(p.getFirst(), p.getLast(), ActivationFormat.BATCHED, 40));
    }
    return all.stream();
  }

  /** w13 in one format, w2 in another. */
  @ParameterizedTest(name = "{0} and {1}, {2}, T={3}")
  @MethodSource("twoSchemes")
  void agreesWithFloat64InTwoSchemes(
      QuantScheme first, QuantScheme second, ActivationFormat format, int tokens) {
    MoeConfig config = config(format, tokens).quantSchemes(List.of(first), List.of(second)).build();
    try (GpuLayer g = layer(config)) {
      GpuLoraGridTest.checkAdapters(g, tokens, 1e-2);
    }
  }

  static Stream<Arguments> composable() {
    List<Arguments> all = new ArrayList<>();
    for (QuantScheme s : List.of(QuantScheme.int4(128), ORDERED, QuantScheme.FP8_BLOCK)) {
      for (int tokens : new int[] {1, 3, 40, 200, 1000}) {
        all.add(Arguments.of(s, "composable", ActivationFormat.STANDARD, tokens));
      }
      all.add(Arguments.of(s, "composable-one-stream", ActivationFormat.STANDARD, 40));
      all.add(Arguments.of(s, "composable-two-streams", ActivationFormat.STANDARD, 200));
      all.add(Arguments.of(s, "composable", ActivationFormat.BATCHED, 40));
    }
    return all.stream();
  }

  /** The deltas of the context's punica wrapper around products without LoRA. */
  @ParameterizedTest(name = "{0}, {1}, {2}, T={3}")
  @MethodSource
  void composable(QuantScheme scheme, String mode, ActivationFormat format, int tokens) {
    MoeConfig config =
        config(format, tokens)
            .quantScheme(scheme)
            .options(MarlinOptions.DEFAULT.withLora(LoraMode.of(mode)))
            .build();
    try (GpuLayer g = layer(config)) {
      GpuLoraGridTest.checkAdapters(g, tokens, 1e-2);
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void replays(boolean actOrder) {
    QuantScheme scheme = QuantScheme.builder(Format.INT4).group(64).actOrder(actOrder).build();
    MoeConfig config =
        MoeConfig.builder(256, 192, 16, 4)
            .quantScheme(scheme)
            .maxTokens(512)
            .lora(new LoraConfig(3, 32))
            .build();
    try (GpuLayer g = new GpuLayer(config, 1 / Math.sqrt(256), 1 / Math.sqrt(192), "marlin")) {
      GpuGraphTest.load(g);
      for (int tokens : new int[] {1, 8, 64, 512}) {
        GpuGraphTest.checkReplays(g, tokens);
      }
    }
  }

  /** Codes, scales and little else: no unpacked copy, nothing left of what preparing took. */
  @ParameterizedTest
  @MethodSource("schemes")
  void takesThePackedBytes(QuantScheme scheme) {
    MoeConfig config = MoeConfig.builder(2048, 768, 16, 4).quantScheme(scheme).maxTokens(1).build();
    try (GpuLayer g = new GpuLayer(config, 1 / Math.sqrt(2048), 1 / Math.sqrt(768), "marlin")) {
      double codes = 16 * 3 * 2048 * 768 * scheme.bits() / 8.0;
      assertThat((double) g.device.allocatedBytes()).isBetween(codes, 1.6 * codes + (4 << 20));
    }
  }
}
