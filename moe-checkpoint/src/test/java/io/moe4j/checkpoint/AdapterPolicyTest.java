package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.nio.file.Files;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** What is refused, skipped or bounded, and what the report says of it. */
@NullUnmarked // a missing value fails the test where it is used
class AdapterPolicyTest extends AdapterTestBase {
  @Test
  void otherKindsOfLora() {
    Map<String, Object> variants =
        Map.of(
            "use_dora",
            true,
            "lora_bias",
            true,
            "alora_invocation_tokens",
            List.of(1, 2),
            "use_qalora",
            true,
            "use_bdlora",
            Map.of("nblocks", 2),
            "layer_replication",
            List.of(List.of(0, 1)),
            "init_lora_weights",
            "pissa",
            "arrow_config",
            Map.of("top_k", 1));
    variants.forEach((key, value) -> {
      TinyCheckpoint t =
          adapter(2, 2)
              .with(key, value)
              .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
              .pair("model.layers.1.self_attn.q_proj", DType.F32, d(2, H), d(H, 2));
      assertThatThrownBy(() -> load(t, qwen3()))
          .as(key)
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("not plain LoRA");
      PeftAdapter none = load(t, qwen3(), AdapterPolicy.LENIENT);
      assertThat(none.adapter().layers()).isEmpty();
      assertThat(none.report().notes()).anyMatch(n -> n.contains("nothing"));
    });
  }

  @ParameterizedTest
  @CsvSource({
    "pissa, false",
    "pissa_niter_16, false",
    "olora, false",
    "corda, false",
    "loftq, false",
    // Its trainer subtracts the first product from the base weights, as PiSSA's does.
    "lora_ga, false",
    "gaussian, true",
    "eva, true",
    "orthogonal, true",
    "mica, true"
  })
  void initialisationsThatChangeTheBaseWeights(String init, boolean plain) {
    TinyCheckpoint t =
        adapter(2, 2)
            .with("init_lora_weights", init)
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    if (plain) {
      assertThat(load(t, qwen3()).layer(1).factors()).containsOnlyKeys(LoraTarget.UP);
    } else {
      assertThatThrownBy(() -> load(t, qwen3()))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining(init);
    }
  }

  @Test
  void whatBelongsToTheBlockButIsNoFactor() {
    Map<String, String> extras =
        Map.of(
            EXPERTS + ".0.up_proj.lora_magnitude_vector.weight", "DoRA",
            EXPERTS + ".0.up_proj.lora_B.bias", "lora_bias",
            BLOCK + "gate.weight", "modules_to_save",
            BLOCK + "router.bias", "bias",
            BLOCK + "something.new.lora_A.weight", "not understood");
    extras.forEach((name, reason) -> {
      TinyCheckpoint t =
          adapter(2, 2)
              .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
              .pair(EXPERTS + ".0.down_proj", DType.F32, d(2, I), d(H, 2))
              .put("base_model.model." + name, DType.F32, I);
      assertThatThrownBy(() -> load(t, qwen3()))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining(reason);
      PeftAdapter rest = load(t, qwen3(), AdapterPolicy.LENIENT);
      boolean spoilsUp = name.contains("up_proj");
      assertThat(rest.report().counts())
          .containsEntry(Disposition.SKIPPED, spoilsUp ? 3 : 1)
          .containsEntry(Disposition.APPLIED, spoilsUp ? 2 : 4);
    });
  }

  @Test
  void whatIsOutsideIsReportedOrRefused() {
    TinyCheckpoint t =
        adapter(2, 2)
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
            .pair("model.layers.1.self_attn.q_proj", DType.F32, d(2, H), d(H, 2))
            .pair("model.layers.0.mlp.up_proj", DType.F32, d(2, H), d(I, 2))
            .put("base_model.model.lm_head.weight", DType.F32, 8, H)
            .put("base_model.model.model.embed_tokens.lora_embedding_A", DType.F32, 2, 8);
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.DEFAULT);
    Map<String, String> reasons =
        loaded.report().tensors().stream()
            .filter(e -> e.disposition() == Disposition.SKIPPED)
            .collect(
                Collectors.toMap(
                    AdapterReport.TensorEntry::tensor, AdapterReport.TensorEntry::reason));
    assertThat(reasons).hasSize(6);
    assertThat(reasons.get("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"))
        .contains("layer 0");
    assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.STRICT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("6 of its 8");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "(([a-z0-9_.]+)+)+!",
        "(.*.*.*.*.*.*.*.*.*)[!]",
        "(([a-z]|[a-z0-9_.])+)+[!]",
        "(?:a?){50}a{50}",
        "((?:|)*)*x",
        "(?:^*)*$x"
      })
  void patternsThatBacktrackElsewhereEnd(String pattern) {
    TinyCheckpoint t =
        adapter(2, 2)
            .with("alpha_pattern", Map.of(pattern, 4))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    Duration seconds = Duration.ofSeconds(20);
    LoraAdapter loaded = assertTimeoutPreemptively(seconds, () -> load(t, qwen3()));
    // It matches nothing: lora_alpha counts.
    assertThat(loaded.layer(1).get(LoraTarget.UP).b().get(0, 7, 1))
        .isEqualTo(b(t, EXPERTS + ".0.up_proj").get(7, 1));
  }

  /** What looks like a name is a regex all the same, and all are Python's. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "up.proj",
        "experts.0.up_pro.",
        "mlp.......s.0.up_proj",
        "0..._proj",
        "up_proj\\Z",
        "[u]p_{,3}proj",
        "layers\\.\\d{,2}\\.mlp\\.experts\\..*",
        "up_proj{,}"
      })
  void patternsMeanWhatPythonReads(String pattern) {
    TinyCheckpoint t =
        adapter(2, 2)
            .with("alpha_pattern", Map.of(pattern, 8))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
            .pair(EXPERTS + ".0.down_proj", DType.F32, d(2, I), d(H, 2));
    LoraAdapter loaded = load(t, qwen3(), AdapterPolicy.STRICT).adapter();
    assertThat(loaded.layer(1).get(LoraTarget.UP).b().get(0, 7, 1))
        .isEqualTo(4 * b(t, EXPERTS + ".0.up_proj").get(7, 1));
    double factor = pattern.contains("experts\\..*") ? 4 : 1;
    assertThat(loaded.layer(1).get(LoraTarget.DOWN).b().get(0, 3, 1))
        .isEqualTo(factor * b(t, EXPERTS + ".0.down_proj").get(3, 1));
  }

  /** The first entry that matches counts, whatever kind it is. */
  @Test
  void theFirstPatternCounts() {
    Map<String, Integer> patterns = new LinkedHashMap<>();
    patterns.put("down_proj", 64);
    patterns.put("u..proj", 8);
    patterns.put("up_proj", 32);
    patterns.put(".*up_proj", 16);
    TinyCheckpoint t =
        adapter(2, 2)
            .with("alpha_pattern", patterns)
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThat(
            load(t, qwen3(), AdapterPolicy.STRICT)
                .adapter()
                .layer(1)
                .get(LoraTarget.UP)
                .b()
                .get(0, 7, 1))
        .isEqualTo(4 * b(t, EXPERTS + ".0.up_proj").get(7, 1));
    assertThat(load(t, qwen3(), AdapterPolicy.STRICT).report().notes())
        .anyMatch(n -> n.startsWith("several entries of alpha_pattern fit, first for"));
    patterns.keySet().removeIf(p -> p.contains("up_proj"));
    assertThat(load(t, qwen3(), AdapterPolicy.STRICT).report().notes())
        .noneMatch(n -> n.contains("several entries"));
  }

  /**
   * PEFT matches patterns with the name of what it wraps: of a weight, where target_parameters name
   * one, as they do of routers since transformers 5.
   */
  @ParameterizedTest
  @CsvSource({
    // targeted, pattern, alpha that counts (6 without the pattern)
    "mlp.gate.weight, mlp.gate, 6",
    "mlp.gate.weight, gate.weight, 10",
    "gate.weight, .*weight, 10",
    "model.layers.1.mlp.gate.weight, gate, 6",
    "late.weight, gate, 10",
    "'', mlp.gate, 10",
    "'', gate.weight, 6",
  })
  void patternsOfARouter(String targeted, String pattern, double alpha) {
    TinyCheckpoint t =
        adapter(2, 6)
            .with("target_parameters", targeted.isEmpty() ? List.of() : List.of(targeted))
            .with("alpha_pattern", Map.of(pattern, 10))
            .pair(BLOCK + "gate", DType.F32, d(2, H), d(E, 2));
    assertDelta(
        load(t, qwen3(), AdapterPolicy.STRICT.withRouter(true))
            .adapter()
            .layer(1)
            .get(LoraTarget.ROUTER),
        1,
        E,
        H,
        2,
        alpha / 2,
        (e, j, i) -> a(t, BLOCK + "gate").get(j, i),
        (e, o, j) -> b(t, BLOCK + "gate").get(o, j));
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "(?:(?:){100000}){100000}",
        "(?:){2147483647}",
        "((((a{30}){30}){30}){30}){30}",
        "(?:|){1000}(?:|){1000}(?:|){1000}(?!)",
        "(?:|){30}(?!)",
        "(?=(a+)+b)c"
      })
  void patternsThatCouldNotEndAreRefused(String pattern) {
    TinyCheckpoint t =
        adapter(2, 2)
            .with("rank_pattern", Map.of(pattern, 4))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    assertTimeoutPreemptively(
        Duration.ofSeconds(20),
        () ->
            assertThatThrownBy(() -> load(t, qwen3()))
                .isInstanceOf(AdapterException.class)
                .hasMessageContaining("rank_pattern"));
  }

  @Test
  void limitsOfThePolicy() {
    TinyCheckpoint t = adapter(8, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(8, H), d(I, 8));
    assertThat(load(t, qwen3(), AdapterPolicy.DEFAULT.withMaxRank(8)).adapter().maxRank())
        .isEqualTo(8);
    assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.LENIENT.withMaxRank(7)))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("rank 8 is over the maximum 7");
    assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.DEFAULT.withMaxBytes(100)))
        .isInstanceOf(AdapterException.class)
        .hasMessageContaining("maxBytes");
  }

  @Test
  void onlyPickledAdaptersAreNamed() throws Exception {
    adapter(2, 2).writeAdapter(dir);
    Files.move(dir.resolve("adapter_model.safetensors"), dir.resolve("adapter_model.bin"));
    assertThatThrownBy(() -> PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("safetensors")
        .hasMessageContaining("pickled");
  }

  @Test
  void filesMayVanishAfterLoading() throws Exception {
    TinyCheckpoint t = adapter(2, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    LoraAdapter loaded = load(t, qwen3());
    Files.write(dir.resolve("adapter_model.safetensors"), new byte[0]);
    assertThat(loaded.layer(1).get(LoraTarget.UP).a().get(0, 1, 3))
        .isEqualTo(a(t, EXPERTS + ".0.up_proj").get(1, 3));
  }

  /** Elements are read once it is known that there are not too many of them. */
  @Test
  void shapesAndLimitsComeBeforeValues() {
    TinyCheckpoint t = adapter(2, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H + 1), d(I, 2));
    a(t, EXPERTS + ".0.up_proj").set(Double.NaN, 0, 0);
    assertThatThrownBy(() -> load(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("takes [r, 16]");
    TinyCheckpoint fits = adapter(2, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    a(fits, EXPERTS + ".0.up_proj").set(Double.NaN, 0, 0);
    assertThatThrownBy(() -> load(fits, qwen3(), AdapterPolicy.DEFAULT.withMaxBytes(100)))
        .hasMessageContaining("maxBytes");
    assertThatThrownBy(() -> load(fits, qwen3(), AdapterPolicy.LENIENT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("2 of its 2")
        .hasMessageContaining("NaN");
  }

  @Test
  void reportsSayWhatIsTaken() {
    TinyCheckpoint one = adapter(2, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    PeftAdapter loaded = load(one, qwen3(), AdapterPolicy.DEFAULT);
    // Memory is taken for all experts.
    assertThat(loaded.report().bytes()).isEqualTo(4L * E * 2 * (H + I));
    TinyCheckpoint shared =
        fused(2, 2)
            .pair(EXPERTS + ".base_layer", DType.F32, d(2 * E, H), d(2 * I, 2 * E))
            .pair(EXPERTS, DType.F32, d(2 * E, I), d(H, 2 * E));
    // Gate and up have one A.
    assertThat(load(shared, qwen3(), AdapterPolicy.DEFAULT).report().bytes())
        .isEqualTo(4L * E * 2 * (H + 2 * I + I + H));
  }

  @Test
  void refusalsRecommendThePolicyThatHelps() {
    TinyCheckpoint attention =
        adapter(2, 2).pair("model.layers.1.self_attn.q_proj", DType.F32, d(2, H), d(H, 2));
    assertThatThrownBy(() -> load(attention, qwen3(), AdapterPolicy.STRICT))
        .hasMessageContaining("AdapterPolicy.DEFAULT")
        .hasMessageNotContaining("LENIENT");
    TinyCheckpoint router = adapter(2, 2).pair(BLOCK + "gate", DType.F32, d(2, H), d(E, 2));
    assertThatThrownBy(() -> load(router, qwen3(), AdapterPolicy.DEFAULT))
        .hasMessageContaining("AdapterPolicy.LENIENT");
    TinyCheckpoint damaged =
        adapter(2, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H + 1), d(I, 2));
    for (AdapterPolicy policy :
        List.of(AdapterPolicy.DEFAULT, AdapterPolicy.STRICT, AdapterPolicy.LENIENT)) {
      assertThatThrownBy(() -> load(damaged, qwen3(), policy))
          .hasMessageContaining("no policy")
          .hasMessageNotContaining("AdapterPolicy.");
    }
  }

  @Test
  void factorsOfTheRouter() {
    TinyCheckpoint t = adapter(2, 6).pair(BLOCK + "gate", DType.F32, d(2, H), d(E, 2));
    PeftAdapter loaded =
        PeftAdapter.load(t.writeAdapter(dir), "x", qwen3(), AdapterPolicy.STRICT.withRouter(true));
    assertDelta(
        loaded.adapter().layer(1).get(LoraTarget.ROUTER),
        1,
        E,
        H,
        2,
        3,
        (e, j, i) -> a(t, BLOCK + "gate").get(j, i),
        (e, o, j) -> b(t, BLOCK + "gate").get(o, j));
    for (long[][] wrong :
        new long[][][] {{{2, E}, {H, 2}}, {{2, H}, {E + 1, 2}}, {{2, H}, {E, 3}}}) {
      TinyCheckpoint bent = adapter(2, 6).pair(BLOCK + "gate", DType.F32, wrong[0], wrong[1]);
      assertThatThrownBy(() -> load(bent, qwen3(), AdapterPolicy.LENIENT.withRouter(true)))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("ROUTER of layer 1");
    }
    TinyCheckpoint whole =
        adapter(2, 6).put("base_model.model." + BLOCK + "gate.weight", DType.F32, E, H);
    assertThatThrownBy(() -> load(whole, qwen3(), AdapterPolicy.DEFAULT.withRouter(true)))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("modules_to_save");
  }

  /** Experts' factors that the config targets and the file lacks were lost on the way. */
  @Test
  void targetedParametersMustBeThere() {
    String attention = "model.layers.1.self_attn.q_proj";
    TinyCheckpoint none = fused(2, 2).pair(attention, DType.F32, d(2, H), d(H, 2));
    TinyCheckpoint half =
        fused(2, 2)
            .pair(EXPERTS, DType.F32, d(2 * E, I), d(H, 2 * E))
            .pair(attention, DType.F32, d(2, H), d(H, 2));
    TinyCheckpoint oneLayer =
        fused(2, 2)
            .pair(EXPERTS, DType.F32, d(2 * E, I), d(H, 2 * E))
            .pair(EXPERTS + ".base_layer", DType.F32, d(2 * E, H), d(2 * I, 2 * E))
            .pair("model.layers.2.mlp.experts", DType.F32, d(2 * E, I), d(H, 2 * E));
    Map<TinyCheckpoint, String> missing =
        Map.of(
            none,
                "no factors for: gate_up_proj of layer 1, down_proj of layer 1, gate_up_proj of layer 2",
            half, "no factors for: gate_up_proj of layer 1",
            oneLayer, "no factors for: gate_up_proj of layer 2");
    missing.forEach((t, words) -> {
      assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.DEFAULT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining(words);
      assertThat(PeftAdapter.inspect(dir, qwen3(), AdapterPolicy.DEFAULT).accepted()).isFalse();
      assertThat(load(t, qwen3(), AdapterPolicy.LENIENT).report().notes())
          .anyMatch(n -> n.contains(words));
    });
    // The same factors under the experts' own names, and parameters that this model does not have.
    load(
        fused(2, 2)
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
            .pair(EXPERTS + ".0.down_proj", DType.F32, d(2, I), d(H, 2)),
        qwen3());
    load(
        adapter(2, 2)
            .with("target_parameters", List.of("experts.other", "linear.down_proj"))
            .pair(attention, DType.F32, d(2, H), d(H, 2)),
        qwen3());
  }

  @Test
  void adaptersThatChangeNothingSaySo() {
    TinyCheckpoint t = adapter(2, 2).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThat(load(t, qwen3(), AdapterPolicy.DEFAULT).report().notes())
        .noneMatch(n -> n.contains("zero"));
    Tensor b = b(t, EXPERTS + ".0.up_proj");
    b.segment().fill((byte) 0);
    assertThat(load(t, qwen3(), AdapterPolicy.DEFAULT).report().notes())
        .anyMatch(n -> n.contains("every lora_B is zero"));
  }
}
