package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExpertsInputs;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.marlin.MarlinBackend;
import io.moe4j.backend.marlin.MarlinProperties;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.tck.GpuTest;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * A small packed layer is tuned on the card; then a layer runs with what the file says, and with
 * what it is made to say, against float64.
 */
@GpuTest
class GpuTunedPlansTest {
  private static final int HIDDEN = 512;
  private static final int INTERMEDIATE = 256;
  private static final int EXPERTS = 8;
  private static final int TOP_K = 4;
  private static final int RANK = 24;
  private static final int SLOTS = 3;
  private static final int[] TOKENS = {1, 40, 200};

  @TempDir private Path directory;

  @AfterEach
  void clear() {
    System.clearProperty(MarlinProperties.PLANS);
  }

  private static MoeConfig.Builder config() {
    return MoeConfig.builder(HIDDEN, INTERMEDIATE, EXPERTS, TOP_K)
        .inputDtype(DType.BF16)
        .weightDtype(DType.BF16)
        .quantScheme(QuantScheme.int4(128));
  }

  private static GpuLayer layer(int tokens) {
    MoeConfig config = config().maxTokens(tokens).lora(new LoraConfig(SLOTS, RANK)).build();
    return new GpuLayer(config, 1 / Math.sqrt(HIDDEN), 1 / Math.sqrt(INTERMEDIATE), "marlin");
  }

  private static void tune(GpuLayer g, Path file) {
    for (int s = 0; s < SLOTS; s++) {
      g.load("a" + s, RANK);
    }
    for (boolean lora : new boolean[] {false, true}) {
      MoeConfig config = lora ? g.config : config().build();
      try (Tuner tuner = new MarlinBackend().tuner(config, g.experts, g.device, file)) {
        for (int tokens : TOKENS) {
          List<@Nullable String> names = new ArrayList<>();
          for (int t = 0; t < tokens; t++) {
            names.add("a" + t % SLOTS);
          }
          try (AdapterBatch batch = Objects.requireNonNull(g.registry).batch(names)) {
            MoeLoraContext context = lora ? batch.context(0) : null;
            if (context != null) {
              context.awaitFactors(g.device.defaultStream());
            }
            Tuner.Outcome o =
                tuner
                    .tune(
                        List.of(call(g, tokens, context), call(g, tokens, context)),
                        () -> true,
                        what -> {})
                    .orElseThrow();
            assertThat(o.dropped()).as("T=%d, LoRA %s", tokens, lora).isEmpty();
            assertThat(o.measured()).isGreaterThan(8);
            assertThat(o.micros()).isPositive().isLessThanOrEqualTo(o.builtInMicros());
          }
        }
      }
    }
  }

  private static Tuner.Call call(GpuLayer g, int tokens, @Nullable MoeLoraContext context) {
    Tensor hidden = g.empty(DType.BF16, tokens, HIDDEN);
    g.put(g.host(1, tokens, HIDDEN), hidden);
    int[] chosen = new int[tokens * TOP_K];
    float[] weighted = new float[tokens * TOP_K];
    for (int i = 0; i < chosen.length; i++) {
      chosen[i] = (i / TOP_K * 3 + i % TOP_K) % EXPERTS;
      weighted[i] = 0.2f + 0.1f * (i % 7);
    }
    Tensor ids = g.empty(DType.I32, tokens, TOP_K);
    g.put(Tensor.ofInts(chosen, tokens, TOP_K), ids);
    Tensor weights = g.empty(DType.F32, tokens, TOP_K);
    g.put(Tensor.ofFloats(weighted, tokens, TOP_K), weights);
    return new Tuner.Call(
        ExpertsInputs.standard(
            hidden, new ExpertRouting(ids, weights, null), g.empty(DType.BF16, tokens, HIDDEN)),
        context);
  }

  @Test
  void whatIsFoundIsUsedAndRight() throws Exception {
    Path file = directory.resolve("plans.json");
    try (GpuLayer g = layer(TOKENS[TOKENS.length - 1])) {
      tune(g, file);
      System.setProperty(MarlinProperties.PLANS, file.toString());
      assertThat(new MarlinBackend().tuningStatus(g.device.info()).applying())
          .isEqualTo(2 * TOKENS.length);
    }
    check();
    // Plans that the built-in rules would not choose; those of other cards are passed over.
    say(file, "narrow", 16, 2, 4, 8);
    check();
    say(file, "narrow", 8, 1, 8, 8);
    check();
    say(file, "wide", 32, 2, 1, 4);
    check();
    say(file, "wide", 64, 1, 1, 1);
    check();
  }

  private static void check() {
    for (int tokens : TOKENS) {
      try (GpuLayer g = layer(tokens)) {
        GpuLoraGridTest.checkAdapters(g, tokens, 1e-2);
      }
    }
  }

  private static void say(Path file, String kind, int rows, int warps13, int warps2, int group)
      throws Exception {
    String said =
        Files.readString(file)
            .replaceAll("\"kind\" : \"\\w+\"", "\"kind\" : \"" + kind + "\"")
            .replaceAll("\"rows\" : \\d+", "\"rows\" : " + rows)
            .replaceAll("\"warps13\" : \\d+", "\"warps13\" : " + warps13)
            .replaceAll("\"warps2\" : \\d+", "\"warps2\" : " + warps2)
            .replaceAll("\"group_tiles\" : \\d+", "\"group_tiles\" : " + group);
    assertThat(said).contains("\"kind\" : \"" + kind + "\"", "\"warps2\" : " + warps2 + ",");
    Files.writeString(file, said);
  }
}
