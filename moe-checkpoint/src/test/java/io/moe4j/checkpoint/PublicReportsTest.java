package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy.FusedOrder;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Inputs that other systems got wrong by public reports, as testdata/cases holds them: the right
 * output where there is one, else a refusal that says what is wrong. {@link NamesOfExpertsTest},
 * {@link PromisedTensorsTest} and others try what is of the same kind.
 */
@NullUnmarked // a missing value fails the test where it is used
class PublicReportsTest {
  /** The recorded outputs are F32 of F32 arithmetic. */
  private static final double TOLERANCE = 1e-5;

  private static Path at(String name, String part) {
    return Fixtures.cases().resolve(name).resolve(part);
  }

  private static MoeCheckpoint model(String name) {
    return MoeCheckpoint.open(at(name, "model"));
  }

  private static PeftAdapter adapter(String name, MoeCheckpoint model, AdapterPolicy policy) {
    return PeftAdapter.load(at(name, "adapter"), "a", model, policy);
  }

  /** Relative L2 distance of what the loader hands out, computed in double precision. */
  private static double distance(String name, MoeCheckpoint model, PeftAdapter adapter) {
    try (SafetensorsFile in = SafetensorsFile.open(at(name, "input.safetensors"));
        SafetensorsFile out = SafetensorsFile.open(at(name, "expected.safetensors"))) {
      double worst = 0;
      for (int layer : model.layers()) {
        LoraLayer lora = adapter == null ? LoraLayer.NONE : adapter.adapter().layer(layer);
        BlockEvaluator block = new BlockEvaluator(model.config(layer), model.weights(layer));
        Tensor x = in.tensor("x");
        Tensor expected = out.tensor("layers." + layer + ".output");
        double difference = 0;
        double norm = 0;
        for (int t = 0; t < x.size(0); t++) {
          double[] y = block.forward(x.select(0, t).toDoubles(), lora).output();
          for (int i = 0; i < y.length; i++) {
            difference += Math.pow(y[i] - expected.get(t, i), 2);
            norm += Math.pow(expected.get(t, i), 2);
          }
        }
        worst = Math.max(worst, Math.sqrt(difference / norm));
      }
      return worst;
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "v01-index-overlay",
        "v02-index-lists-absent-tensor",
        "v04-unknown-dtype-elsewhere",
        "v05-shared-expert-of-width-0",
        "v07-duplicate-json-key"
      })
  void checkpointsThatAreValid(String name) {
    try (MoeCheckpoint model = model(name)) {
      assertThat(distance(name, model, null)).isLessThan(TOLERANCE);
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "s01-lora_B_layout-marker",
        "s05-wrapper-segment_fsdp_wrapped",
        "s06-orig_mod-prefix-alpha_pattern",
        "v06-sharded-adapter",
        "m06-mlx-adapter"
      })
  void adaptersThatAreValid(String name) {
    try (MoeCheckpoint model = model(name)) {
      PeftAdapter loaded = adapter(name, model, AdapterPolicy.STRICT);
      assertThat(distance(name, model, loaded)).isLessThan(TOLERANCE);
      assertThat(loaded.report().counts()).containsEntry(Disposition.SKIPPED, 0);
    }
  }

  @Test
  void anOrderThatTheFileDoesNotTellIsTheCallers() {
    String name = "s02-unsloth-before-marker";
    try (MoeCheckpoint model = model(name)) {
      for (AdapterPolicy policy :
          new AdapterPolicy[] {AdapterPolicy.DEFAULT, AdapterPolicy.LENIENT}) {
        assertThatThrownBy(() -> adapter(name, model, policy))
            .isInstanceOf(AdapterRefusedException.class)
            .hasMessageContaining("Unsloth")
            .hasMessageContaining("withLoraBOrder");
      }
      AdapterPolicy grouped = AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.GROUPED_BY_EXPERT);
      assertThat(distance(name, model, adapter(name, model, grouped))).isLessThan(TOLERANCE);
      AdapterPolicy ranks = AdapterPolicy.DEFAULT.withLoraBOrder(FusedOrder.RANK_MAJOR);
      assertThat(distance(name, model, adapter(name, model, ranks))).isGreaterThan(0.1);
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"DEFAULT", "LENIENT"})
  void factorsThatWereNeverGatheredAreDamage(String policy) {
    String name = "s03-zero3-all-empty";
    try (MoeCheckpoint model = model(name)) {
      assertThatThrownBy(() ->
              adapter(
                  name,
                  model,
                  policy.equals("DEFAULT") ? AdapterPolicy.DEFAULT : AdapterPolicy.LENIENT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("48 of its 48")
          .hasMessageContaining("ZeRO-3")
          .hasMessageContaining("no policy");
    }
  }

  @Test
  void anotherBlockNameIsNotAttention() {
    String name = "s07-moe-path";
    try (MoeCheckpoint model = model(name)) {
      assertThatThrownBy(() -> adapter(name, model, AdapterPolicy.DEFAULT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("'moe' of layer 0")
          .hasMessageContaining("mlp");
      AdapterReport report = adapter(name, model, AdapterPolicy.LENIENT).report();
      assertThat(report.counts()).containsEntry(Disposition.SKIPPED, 8);
      assertThat(report.tensors()).noneMatch(t -> t.reason().contains("attention, embedding"));
    }
  }

  @Test
  void aSharedExpertThatTheConfigPromisesMustBeThere() {
    assertThatThrownBy(() -> model("s09-shared-expert-missing"))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("layer 1 lacks the shared expert")
        .hasMessageContaining("shared_experts");
  }

  @Test
  void aRouterThatIsNotFiniteIsRefused() {
    assertThatThrownBy(() -> model("s11-nan-correction-bias"))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("correction bias")
        .hasMessageContaining("NaN");
  }

  @Test
  void factorsOnTheRouterAreAChoice() {
    String name = "v09-router-lora";
    try (MoeCheckpoint model = model(name)) {
      assertThatThrownBy(() -> adapter(name, model, AdapterPolicy.DEFAULT))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("the router")
          .hasMessageContaining("withRouter(true)");
      PeftAdapter loaded = adapter(name, model, AdapterPolicy.STRICT.withRouter(true));
      assertThat(loaded.adapter().layer(0).get(LoraTarget.ROUTER)).isNotNull();
      assertThat(distance(name, model, loaded)).isLessThan(TOLERANCE);
      assertThat(distance(name, model, adapter(name, model, AdapterPolicy.LENIENT)))
          .isGreaterThan(1e-3);
    }
  }

  @Test
  void quantisedCheckpointsAreNamedByTheirMethod() {
    assertThatThrownBy(() -> model("m01-quantised-hqq"))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("quantised")
        .hasMessageContaining("quant_method 'hqq'")
        .hasMessageNotContaining("[gate=");
  }

  @Test
  void pointersOfGitLfs() {
    assertThatThrownBy(() -> model("m03-git-lfs-pointer"))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("model.safetensors is a Git LFS pointer")
        .hasMessageContaining("git lfs pull");
  }

  @Test
  void aWrappedModelIsDescribedByItsInnerType(@TempDir Path dir) throws IOException {
    String name = "m04-wrapped-model-advice";
    // The family has become known since; under another name the advice is what it was.
    for (String file : new String[] {"config.json", "model.safetensors"}) {
      Files.copy(at(name, "model").resolve(file), dir.resolve(file));
    }
    Path config = dir.resolve("config.json");
    Files.writeString(config, Files.readString(config).replace("qwen3_vl_moe", "house_vl"));
    assertThatThrownBy(() -> MoeCheckpoint.open(dir))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("'house_vl', 'house_vl_text' in text_config")
        .hasMessageContaining("builder(\"house_vl_text\")")
        .hasMessageContaining("\"model_type\": \"house_vl_text\"");
    try (MoeCheckpoint model = model(name)) {
      assertThat(model.modelType()).isEqualTo("qwen3_vl_moe_text");
      assertThat(model.layers()).containsExactly(0, 1);
    }
    for (String type : new String[] {"qwen3_vl_moe_text", "qwen3_vl_moe"}) {
      CheckpointLayout layout = KnownLayouts.all().get("qwen3_moe").toBuilder(type).build();
      try (MoeCheckpoint model =
          MoeCheckpoint.open(at(name, "model"), CheckpointOptions.DEFAULT.withLayout(layout))) {
        assertThat(model.layers()).containsExactly(0, 1);
        assertThat(model.root()).isEqualTo("model.language_model.");
      }
    }
  }

  @Test
  void aNestedConfigWithoutTypeIsReadByItsArchitecture() {
    // What deepseek_v2 with norm_topk_prob means is not settled, so that this one is refused then.
    assertThatThrownBy(() -> model("m05-deepseek-ocr-language_config"))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("(language_config): 'norm_topk_prob' is true");
  }

  @Test
  void oneOfSeveralRoots() {
    Path directory = at("m08-second-root", "model");
    assertThatThrownBy(() -> MoeCheckpoint.open(directory))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("'model.', 'model.eagle.'")
        .hasMessageContaining("withRoot");
    try (MoeCheckpoint model =
        MoeCheckpoint.open(directory, CheckpointOptions.DEFAULT.withRoot("model"))) {
      assertThat(model.layers()).containsExactly(1, 2);
      assertThat(model.root()).isEqualTo("model.");
    }
    assertThatThrownBy(
            () -> MoeCheckpoint.open(directory, CheckpointOptions.DEFAULT.withRoot("model.draft.")))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("'model.draft.'")
        .hasMessageContaining("'model.eagle.'");
  }

  @Test
  void aCorrectionBiasWithTwoDimensions() {
    CheckpointLayout ernie =
        CheckpointLayout.builder("ernie4_5_moe")
            .block("layers.{L}.mlp")
            .perExpert("experts.{E}.gate_proj", "experts.{E}.up_proj", "experts.{E}.down_proj")
            .router("gate.weight")
            .correctionBias("moe_statics.e_score_correction_bias")
            .sharedExpert("shared_experts")
            .rules((c, layer) ->
                MoeConfig.builder(
                        c.requireInt("hidden_size"),
                        c.requireInt("moe_intermediate_size"),
                        c.requireInt("n_routed_experts"),
                        c.requireInt("num_experts_per_tok"))
                    .routing(RoutingConfig.deepseekV3(4, 2, true, 2.5f)))
            .build();
    // Its first layer is dense, which rules given as a lambda do not say.
    assertThatThrownBy(() ->
            MoeCheckpoint.open(
                at("m09-correction-bias-1xE", "model"),
                CheckpointOptions.DEFAULT.withLayout(ernie)))
        .hasMessageContaining("layers [0] have routed experts")
        .hasMessageContaining("they hold layers [1, 2]");
  }

  @Test
  void oneFileBesideAnIndexIsRemarkedOn() {
    try (MoeCheckpoint model = model("n01-single-file-beside-index")) {
      assertThat(model.notes())
          .containsExactly(
              "model.safetensors and model.safetensors.index.json are both there;"
                  + " model.safetensors was read");
    }
  }
}
