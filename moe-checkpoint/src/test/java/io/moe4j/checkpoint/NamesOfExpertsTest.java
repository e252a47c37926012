package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import io.moe4j.checkpoint.AdapterReport.TensorEntry;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** An expert's factor is applied, or refused by name; it never passes for attention. */
@NullUnmarked // a missing value fails the test where it is used
class NamesOfExpertsTest extends AdapterTestBase {
  private static TinyCheckpoint withTensors(String a, String b) {
    return adapter(2, 4).put(a, DType.F32, 2, H).put(b, DType.F32, I, 2);
  }

  /** Wherever PyTorch's wrappers stand in a name, the factor is the same. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "_orig_mod.base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model.model._orig_mod.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "module.base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "module._orig_mod.base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "_fsdp_wrapped_module.base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1._checkpoint_wrapped_module.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers._orig_mod.1.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1.mlp._orig_mod.experts.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1.mlp.module.experts.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1.mlp.experts._fsdp_wrapped_module.0.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1.mlp.experts.0._fpw_module.up_proj.lora_%s.weight",
        "base_model.model.model.layers.1.mlp.experts.0.up_proj._fsdp_wrapped_module.lora_%s.weight",
        "base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s._fsdp_wrapped_module.weight",
        "base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.default._orig_mod.weight",
        "_forward_module.base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model._fsdp_wrapped_module.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight",
        "base_model.model.base_model.model.model.layers.1.mlp.experts.0.up_proj.lora_%s.weight"
      })
  void wrapperSegments(String key) {
    String a = key.formatted("A");
    String b = key.formatted("B");
    TinyCheckpoint t = withTensors(a, b);
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.STRICT);
    assertThat(loaded.adapter().layer(1).get(LoraTarget.UP).a().get(0, 1, 3))
        .isEqualTo(t.tensors.get(a).get(1, 3));
    // Patterns are of the names without them, too.
    for (String pattern :
        List.of(
            "^model\\.layers\\.1\\.mlp\\.experts\\.0\\.up_proj",
            "model.layers.1.mlp.experts.0.up_proj",
            "^_orig_mod\\.model\\.layers\\.1\\.mlp\\.experts\\.0\\.up_proj$",
            "_orig_mod.model.layers.1.mlp.experts.0.up_proj",
            "module.model.layers.1._fsdp_wrapped_module.mlp.experts.0.up_proj",
            "model\\.layers\\.\\d+\\._checkpoint_wrapped_module\\.mlp\\.experts\\..*",
            "experts\\.0\\.up_proj\\._fsdp_wrapped_module$",
            "(_orig_mod\\.)?model\\.layers\\.1\\.mlp\\.experts\\.0\\.up_proj")) {
      t.config.put("alpha_pattern", Map.of(pattern, 16));
      double factor =
          load(t, qwen3(), AdapterPolicy.STRICT)
              .adapter()
              .layer(1)
              .get(LoraTarget.UP)
              .b()
              .get(0, 5, 1);
      assertThat(factor).as(pattern).isEqualTo(8 * t.tensors.get(b).get(5, 1));
    }
  }

  @Test
  void wrapperSegmentsInTargetParameters() {
    String fused = "base_model.model.model.layers.1.mlp._orig_mod.experts.lora_";
    TinyCheckpoint t =
        adapter(2, 4)
            .with("target_parameters", List.of("mlp._orig_mod.experts.down_proj"))
            .put(fused + "A.weight", DType.F32, 2 * E, I)
            .put(fused + "B.weight", DType.F32, H, 2 * E);
    assertThat(load(t, qwen3(), AdapterPolicy.STRICT).adapter().layer(1).factors())
        .containsOnlyKeys(LoraTarget.DOWN);
  }

  @Test
  void aPatternThatNeedsAWrapperIsRefused() {
    TinyCheckpoint t =
        adapter(2, 4)
            .with("alpha_pattern", Map.of("(_orig_mod|_fsdp_wrapped_module)\\.model\\..*", 16))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThatThrownBy(() -> load(t, qwen3()))
        .hasMessageContaining("alpha_pattern")
        .hasMessageContaining("wrapper");
  }

  @Test
  void wrapperSegmentsInCheckpoints() {
    TinyCheckpoint t = TinyCheckpoint.qwen3();
    TinyCheckpoint wrapped = new TinyCheckpoint();
    wrapped.config.putAll(t.config);
    t.tensors.forEach((name, tensor) ->
        wrapped.tensors.put(
            "_orig_mod."
                + name.replace(".mlp.", "._fsdp_wrapped_module.mlp._checkpoint_wrapped_module."),
            tensor));
    try (MoeCheckpoint model = MoeCheckpoint.open(wrapped.writeModel(dir))) {
      assertThat(model.layers()).containsExactly(1, 2);
      assertThat(model.root()).isEqualTo("model.");
    }
  }

  @Test
  void aFactorThatIsThereWithAndWithoutWrapperIsRefused() {
    String key = ".mlp.experts.0.up_proj.lora_A.weight";
    TinyCheckpoint t =
        adapter(2, 4)
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
            .put("base_model.model.model.layers.1._orig_mod" + key, DType.F32, 2, H);
    assertThatThrownBy(() -> load(t, qwen3())).hasMessageContaining("a second lora_A");
  }

  /** What looks like an expert and finds no place is refused, and skipped under its own reason. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "model.layers.1.moe",
        "model.layers.1.moe.experts",
        "model.layers.1.moe.experts.0.up_proj",
        "model.layers.1.block_sparse_moe.experts.0.w1",
        "model.layers.1.block_sparse_moe.gate",
        "model.layers.1.feed_forward.experts.0.up_proj",
        "model.layers.1.feed_forward.w1",
        "model.layers.1.ffn.experts.mlp.w1",
        "model.layers.1.ffn.up_proj",
        "model.layers.1.experts.0.up_proj",
        "model.layers.1.experts",
        "model.layers.1.mixer.experts.0.up_proj",
        "model.layers.1.mlp_moe.up_proj",
        "model.layers.1.shared_expert.up_proj",
        "model.layers.1.shared_mlp.input_linear",
        "model.layers.1.residual_mlp.w1",
        "model.layers.1.gate",
        "model.layers.1.router",
        "model.layers.1.something",
        "model.layers.1",
        "model.layers.1.mlp.switch_mlp.up_proj",
        "model.layers.1.mlp.deepspeed_moe.experts.deepspeed_experts.0.up_proj",
        "model.layers.1.mlp.local_experts.0.up_proj",
        "model.layers.01.mlp.experts.0.up_proj",
        "model.layers.\u0661.mlp.experts.0.up_proj",
        "model.layers.1.self_attn.experts.0.q_proj",
        "model.layers.0.moe.experts.0.up_proj",
        "model.layers.0.mlp.experts.0.up_proj",
        "model.layers.0.mlp.shared_experts.up_proj",
        "model.layers.0.block_sparse_moe.experts.0.w1",
        "model.layers.7.mlp.experts.0.up_proj",
        "model.layers.7.moe.experts.0.up_proj",
        "model.layer.1.mlp.experts.0.up_proj",
        "model.blocks.1.mlp.experts.0.up_proj",
        "model.blocks.1.ffn.up_proj",
        "transformer.h.1.mlp.experts.0.up_proj",
        "transformer.h.1.mlp.c_fc",
        "model.decoder.block.1.layer.2.mlp.router.classifier",
        "experts.0.up_proj",
        "mlp.experts.0.up_proj",
        "model.mlp.up_proj",
        "moe",
        "gate",
        "model.gate",
        "model.w13",
        "model.layers.1.attn_mlp.up_proj",
        "model.layers.1.norm_mlp.up_proj",
        "model.layers.1.embed_mlp.w1",
        "model.layers.1.conv_ffn.w1",
        "model.layers.1.mamba.mlp.up_proj",
        "model.layers.1.temporal_moe.w1",
        "Model.Layers.1.MLP.Experts.0.Up_Proj"
      })
  void namesThatFindNoPlace(String module) {
    TinyCheckpoint t =
        adapter(2, 4)
            .pair(module, DType.F32, d(2, H), d(I, 2))
            .pair(EXPERTS + ".3.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("2 of its 4");
    AdapterReport report = load(t, qwen3(), AdapterPolicy.LENIENT).report();
    assertThat(report.counts())
        .containsEntry(Disposition.SKIPPED, 2)
        .containsEntry(Disposition.APPLIED, 2);
    assertThat(report.tensors())
        .filteredOn(e -> e.disposition() == Disposition.SKIPPED)
        .noneMatch(e -> e.reason().contains("attention, embedding"));
    // Whole weights under such a name fare no better.
    TinyCheckpoint whole =
        adapter(2, 4).put("base_model.model." + module + ".weight", DType.F32, I, H);
    assertThatThrownBy(() -> load(whole, qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(AdapterRefusedException.class);
  }

  /** Attention and a dense MLP beside a block whose parts stand in the layer itself. */
  @ParameterizedTest
  @CsvSource({
    "gemma4_text, self_attn.q_proj, OUTSIDE",
    "gemma4_text, mlp.gate_proj, OUTSIDE",
    "gemma4_text, mlp.down_proj, OUTSIDE",
    "gemma4_text, post_feedforward_layernorm_2, OUTSIDE",
    "gemma4_text, moe.down_proj, REFUSED",
    "gemma4_text, mlp_experts.down_proj, REFUSED",
    "granitemoehybrid, self_attn.q_proj, OUTSIDE",
    "granitemoehybrid, mamba.in_proj, OUTSIDE",
    "granitemoehybrid, mlp.down_proj, REFUSED",
    "step3p5, self_attn.q_proj, OUTSIDE",
    "jetmoe, self_attention.experts.router.layer, OUTSIDE",
    "jetmoe, self_attention.kv_proj, OUTSIDE",
    "jetmoe, experts.router.layer, REFUSED",
    "longcat_flash, mlps.0.gate_proj, OUTSIDE",
    "longcat_flash, self_attn.1.o_proj, OUTSIDE",
    "longcat_flash, mlps_of_experts.gate_proj, REFUSED",
    "longcat_flash, mlp.router.classifier, OUTSIDE"
  })
  void whatStandsBesideABlock(String family, String module, String fate) {
    AdapterTargetModel model = model(family, MoeConfig.builder(H, I, E, 2));
    TinyCheckpoint t = adapter(2, 4).pair("model.layers.1." + module, DType.F32, d(2, H), d(I, 2));
    AdapterPolicy policy = AdapterPolicy.DEFAULT.withRouter(true);
    if (fate.equals("REFUSED")) {
      assertThatThrownBy(() -> load(t, model, policy)).isInstanceOf(AdapterRefusedException.class);
      return;
    }
    assertThat(load(t, model, policy).report().tensors())
        .allMatch(e -> e.disposition() == Disposition.SKIPPED);
  }

  /** What does not look like one is reported and left out. */
  @ParameterizedTest
  @ValueSource(
      strings = {
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.gate_proj",
        "model.layers.1.attention.wq",
        "model.layers.1.linear_attn.in_proj_qkvz",
        "model.layers.1.mamba.in_proj",
        "model.layers.1.input_layernorm",
        "model.layers.1.post_attention_layernorm",
        "model.layers.1.pre_feedforward_layernorm",
        "model.layers.1.post_mlp_norm",
        "model.layers.1.self_attn.q_norm",
        "model.layers.1.conv.conv",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.gate_up_proj",
        "model.embed_tokens",
        "model.norm",
        "lm_head",
        "score",
        "model.vision_tower.encoder.layers.1.mlp.fc1",
        "model.visual.blocks.1.mlp.fc1",
        "visual.merger.mlp.0",
        "audio_tower.layers.1.fc1",
        "multi_modal_projector.mlp.0",
        "mtp.layers.1.mlp.experts.0.up_proj",
        "talker.model.layers.1.mlp.experts.0.up_proj"
      })
  void namesOfOtherThings(String module) {
    TinyCheckpoint t =
        adapter(2, 4)
            .pair(module, DType.F32, d(2, H), d(I, 2))
            .pair(EXPERTS + ".3.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThat(load(t, qwen3(), AdapterPolicy.DEFAULT).report().counts())
        .containsEntry(Disposition.SKIPPED, 2)
        .containsEntry(Disposition.APPLIED, 2);
  }

  @Test
  void layersForPredictionAreLeftOutAndLaterOnesAreNot() {
    AdapterTargetModel plain = qwen3();
    AdapterTargetModel model =
        new AdapterTargetModel(
            plain.layout(), plain.layers(), 3, 1, Optional.of("model."), Set.of());
    String experts = ".mlp.experts.0.up_proj";
    TinyCheckpoint t = adapter(2, 4).pair("model.layers.3" + experts, DType.F32, d(2, H), d(I, 2));
    AdapterReport report = load(t, model, AdapterPolicy.DEFAULT).report();
    assertThat(report.tensors())
        .allMatch(e -> e.reason().contains("multi-token prediction"))
        .allMatch(e -> e.disposition() == Disposition.SKIPPED);
    assertThatThrownBy(() ->
            load(
                t.pair("model.layers.4" + experts, DType.F32, d(2, H), d(I, 2)),
                model,
                AdapterPolicy.DEFAULT))
        .hasMessageContaining("layer 4 is beyond");
  }

  @Test
  void predictionLayersAreKnownFromTheConfigOrTheFiles() {
    TinyCheckpoint byConfig = TinyCheckpoint.qwen3().with("num_nextn_predict_layers", 2);
    try (MoeCheckpoint model = MoeCheckpoint.open(byConfig.writeModel(dir.resolve("a")))) {
      assertThat(model.adapterTarget().predictionLayers()).isEqualTo(2);
    }
    TinyCheckpoint byFile = TinyCheckpoint.qwen3();
    new TreeMap<>(byFile.tensors)
        .forEach((name, tensor) -> {
          if (name.contains("layers.2.")) {
            byFile.tensors.put(name.replace("layers.2.", "layers.3."), tensor);
          }
        });
    try (MoeCheckpoint model = MoeCheckpoint.open(byFile.writeModel(dir.resolve("b")))) {
      assertThat(model.adapterTarget().predictionLayers()).isEqualTo(1);
      assertThat(model.notes()).anyMatch(n -> n.contains("layer 3 is left out"));
    }
  }

  /** A second tower's factors must not end up in the first tower's layers. */
  @ParameterizedTest
  @CsvSource({
    "model., model.eagle., model.layers, model.eagle.layers",
    "model.eagle., model., model.eagle.layers, model.layers",
    "thinker.model., talker.model., thinker.model.layers, talker.model.layers",
    "talker.model., thinker.model., talker.model.layers, thinker.model.layers",
    "model., mtp., model.layers, mtp.layers"
  })
  void factorsOfAnotherRoot(String root, String other, String mine, String theirs) {
    AdapterTargetModel plain = qwen3();
    AdapterTargetModel model =
        new AdapterTargetModel(
            plain.layout(), plain.layers(), 3, 0, Optional.of(root), Set.of(other));
    String tail = ".1.mlp.experts.0.up_proj";
    TinyCheckpoint t =
        adapter(2, 4)
            .pair(theirs + tail, DType.F32, d(2, H), d(I, 2))
            .pair(mine + tail.replace("0", "1"), DType.F32, d(2, H), d(I, 2));
    PeftAdapter loaded = load(t, model, AdapterPolicy.DEFAULT);
    assertThat(loaded.report().tensors())
        .filteredOn(e -> e.disposition() == Disposition.APPLIED)
        .extracting(TensorEntry::tensor)
        .allMatch(n -> n.contains(mine))
        .hasSize(2);
  }

  @Test
  void severalRootsWithoutAModelToTellThemApartAreRefused() {
    String tail = ".1.mlp.experts.0.up_proj";
    TinyCheckpoint t =
        adapter(2, 4)
            .pair("model.layers" + tail, DType.F32, d(2, H), d(I, 2))
            .pair("draft.layers" + tail.replace("0", "1"), DType.F32, d(2, H), d(I, 2));
    assertThatThrownBy(() -> load(t, qwen3())).hasMessageContaining("under several roots");
  }

  /** What the config promises of a block is in the file. */
  @ParameterizedTest
  @ValueSource(strings = {"gate", "mlp.gate", "experts", "layers.1.mlp.gate", "mlp"})
  void partsOfTheBlockThatTheConfigSaysAreSaved(String module) {
    TinyCheckpoint t =
        adapter(2, 4)
            .with("modules_to_save", List.of("lm_head", module))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThatThrownBy(() -> load(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("modules_to_save")
        .hasMessageContaining(module);
    assertThat(load(t, qwen3(), AdapterPolicy.LENIENT).report().notes())
        .anyMatch(n -> n.contains("modules_to_save"));
    t.with("modules_to_save", List.of("lm_head", "score", "embed_tokens", "gate_proj"));
    assertThat(load(t, qwen3(), AdapterPolicy.STRICT).report().accepted()).isTrue();
  }

  /** A file without a tensor is what some trainers leave behind; it is no adapter. */
  @Test
  void anAdapterWithoutATensor() {
    for (AdapterPolicy policy : List.of(AdapterPolicy.DEFAULT, AdapterPolicy.LENIENT)) {
      assertThatThrownBy(() -> load(adapter(2, 4), qwen3(), policy))
          .isInstanceOf(io.moe4j.api.CheckpointException.class)
          .hasMessageContaining("no tensor at all");
    }
  }

  @Test
  void aScaleOfZeroIsRemarkedOn() {
    TinyCheckpoint t =
        adapter(2, 4)
            .with("alpha_pattern", Map.of("experts.0.up_proj", 0))
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    assertThat(load(t, qwen3(), AdapterPolicy.STRICT).report().notes())
        .anyMatch(n -> n.contains("alpha is 0"));
  }

  @Test
  void emptyFactorsAreHarmlessOnlyWhereTheModelHasNoSuchModule() {
    Map<String, Boolean> harmless = new TreeMap<>();
    harmless.put(EXPERTS + ".0.up_proj", false);
    harmless.put(EXPERTS + ".w1", false);
    harmless.put(EXPERTS + ".gate_up_proj", false);
    harmless.put(EXPERTS, false);
    harmless.put(EXPERTS + ".base_layer", false);
    harmless.put(EXPERTS + ".gate_up_projs.2", false);
    harmless.put(BLOCK + "gate", false);
    harmless.put(BLOCK + "shared_expert.up_proj", false);
    harmless.put(BLOCK + "shared_expert_gate", false);
    harmless.put("model.layers.1.moe.experts.0.up_proj", false);
    harmless.put(EXPERTS + ".something", false);
    harmless.put(EXPERTS + ".7.up_proj", true);
    harmless.put("model.layers.0.mlp.experts.0.up_proj", true);
    harmless.forEach((module, ok) -> {
      TinyCheckpoint t =
          adapter(2, 4)
              .pair(module, DType.F32, d(0), d(0))
              .pair(EXPERTS + ".3.down_proj", DType.F32, d(2, I), d(H, 2));
      if (ok) {
        assertThat(load(t, qwen2(), AdapterPolicy.STRICT).report().counts())
            .as(module)
            .containsEntry(Disposition.SKIPPED, 2);
      } else {
        assertThatThrownBy(() -> load(t, qwen2(), AdapterPolicy.DEFAULT))
            .as(module)
            .isInstanceOf(AdapterRefusedException.class);
      }
    });
    AdapterTargetModel none = model("qwen2_moe", MoeConfig.builder(H, I, E, 2));
    TinyCheckpoint shared =
        adapter(2, 4).pair(BLOCK + "shared_expert.up_proj", DType.F32, d(0), d(0));
    assertThat(load(shared, none, AdapterPolicy.STRICT).report().counts())
        .containsEntry(Disposition.SKIPPED, 2);
    TinyCheckpoint gate =
        adapter(2, 4)
            .pair("backbone.layers.1.mixer.experts.0.gate_proj", DType.F32, d(0), d(0))
            .pair("backbone.layers.1.mixer.experts.0.up_proj", DType.F32, d(0), d(0));
    assertThatThrownBy(() -> load(gate, nemotron(H, I, 0)))
        .hasMessageContaining("2 of its 4")
        .hasMessageContaining("empty");
    TinyCheckpoint half = adapter(2, 4).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(0));
    assertThatThrownBy(() -> load(half, qwen3())).isInstanceOf(AdapterRefusedException.class);
  }
}
