package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterPolicy.FusedSide;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Adapter files of every form, against deltas that are computed here from the very definition: for
 * each form the test says where the file keeps {@code A[e][j][in]} and {@code B[e][out][j]}.
 */
@NullUnmarked // a missing value fails the test where it is used
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
class AdapterFormsTest extends AdapterTestBase {
  @Test
  void fusedFactorsAreExpertMajorInAAndRankMajorInB() {
    int r = 3;
    TinyCheckpoint t =
        fused(r, 6)
            .pair(EXPERTS + ".base_layer", DType.F32, d(E * r, H), d(2 * I, r * E))
            .pair(EXPERTS, DType.F32, d(E * r, I), d(H, r * E));
    LoraAdapter loaded = load(t, qwen3());
    Tensor a = a(t, EXPERTS + ".base_layer");
    Tensor b = b(t, EXPERTS + ".base_layer");
    At atA = (e, j, i) -> a.get(e * r + j, i);
    LoraFactors gate = loaded.layer(1).get(LoraTarget.GATE);
    LoraFactors up = loaded.layer(1).get(LoraTarget.UP);
    assertDelta(gate, E, I, H, r, 2, atA, (e, o, j) -> b.get(o, j * E + e));
    assertDelta(up, E, I, H, r, 2, atA, (e, o, j) -> b.get(I + o, j * E + e));
    assertThat(gate.a()).as("one A for both").isSameAs(up.a());
    Tensor a2 = a(t, EXPERTS);
    Tensor b2 = b(t, EXPERTS);
    LoraFactors down = loaded.layer(1).get(LoraTarget.DOWN);
    assertDelta(
        down, E, H, I, r, 2, (e, j, i) -> a2.get(e * r + j, i), (e, o, j) -> b2.get(o, j * E + e));
    assertThat(down.a().isContiguous()).isTrue();
    assertThat(down.b().transpose(1, 2).isContiguous())
        .as("ranks of B apart, rows side by side")
        .isTrue();
    assertThat(down.a().shape()).isEqualTo(d(E, r, I));
    assertThat(loaded.layer(2).factors()).isEmpty();
  }

  @Test
  void factorsSharedByAllExperts() {
    int r = 3;
    TinyCheckpoint t =
        fused(r, 3)
            .pair(EXPERTS + ".base_layer", DType.BF16, d(r, H), d(2 * I, r * E))
            .pair(EXPERTS, DType.BF16, d(E * r, I), d(H, r));
    LoraAdapter loaded = load(t, qwen3());
    Tensor a = a(t, EXPERTS + ".base_layer");
    Tensor b = b(t, EXPERTS + ".base_layer");
    LoraFactors gate = loaded.layer(1).get(LoraTarget.GATE);
    assertThat(gate.a().shape()).isEqualTo(d(1, r, H));
    assertDelta(gate, E, I, H, r, 1, (e, j, i) -> a.get(j, i), (e, o, j) -> b.get(o, j * E + e));
    Tensor a2 = a(t, EXPERTS);
    Tensor b2 = b(t, EXPERTS);
    LoraFactors down = loaded.layer(1).get(LoraTarget.DOWN);
    assertThat(down.b().shape()).isEqualTo(d(1, H, r));
    assertDelta(down, E, H, I, r, 1, (e, j, i) -> a2.get(e * r + j, i), (e, o, j) -> b2.get(o, j));
  }

  @Test
  void aPairSharedByAllExpertsInBothFactors() {
    int r = 3;
    TinyCheckpoint t =
        adapter(r, 3)
            .with("target_parameters", List.of("down_proj"))
            .pair(EXPERTS, DType.BF16, d(r, I), d(H, r));
    LoraFactors down = load(t, qwen3()).layer(1).get(LoraTarget.DOWN);
    Tensor a = a(t, EXPERTS);
    Tensor b = b(t, EXPERTS);
    assertThat(down.numExperts()).isEqualTo(1);
    assertDelta(down, E, H, I, r, 1, (e, j, i) -> a.get(j, i), (e, o, j) -> b.get(o, j));
  }

  @Test
  void stackedThreeDimensionalFactors() {
    int r = 2;
    TinyCheckpoint t =
        adapter(r, 2)
            .pair(EXPERTS + ".w1", DType.F32, d(1, r, H), d(E, I, r))
            .pair(EXPERTS + ".w3", DType.F32, d(r, H), d(E, I, r))
            .pair(EXPERTS + ".w2", DType.F32, d(E, r, I), d(1, H, r));
    LoraAdapter loaded = load(t, qwen3());
    for (Map.Entry<String, LoraTarget> e :
        Map.of("w1", LoraTarget.GATE, "w3", LoraTarget.UP).entrySet()) {
      Tensor a = a(t, EXPERTS + "." + e.getKey());
      Tensor b = b(t, EXPERTS + "." + e.getKey());
      At atA = (x, j, i) -> a.dims() == 3 ? a.get(0, j, i) : a.get(j, i);
      assertDelta(
          loaded.layer(1).get(e.getValue()), E, I, H, r, 1, atA, (x, o, j) -> b.get(x, o, j));
    }
    Tensor a = a(t, EXPERTS + ".w2");
    Tensor b = b(t, EXPERTS + ".w2");
    assertDelta(
        loaded.layer(1).get(LoraTarget.DOWN),
        E,
        H,
        I,
        r,
        1,
        (x, j, i) -> a.get(x, j, i),
        (x, o, j) -> b.get(0, o, j));
  }

  @Test
  void stackedGateUpIsSplit() {
    int r = 2;
    String module = EXPERTS + ".gate_up_proj";
    TinyCheckpoint t = adapter(r, 2).pair(module, DType.F32, d(E, r, H), d(E, 2 * I, r));
    LoraAdapter loaded = load(t, qwen3());
    Tensor a = a(t, module);
    Tensor b = b(t, module);
    assertDelta(
        loaded.layer(1).get(LoraTarget.UP),
        E,
        I,
        H,
        r,
        1,
        (e, j, i) -> a.get(e, j, i),
        (e, o, j) -> b.get(e, I + o, j));
  }

  @Test
  void expertsFoldedUnderAnUnprovenNameAreRefused() {
    TinyCheckpoint t = adapter(2, 2).pair(EXPERTS + ".w1", DType.F32, d(E * 2, H), d(I, 2 * E));
    assertThatThrownBy(() -> load(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("[4 or 1, r, 16]");
  }

  @Test
  void ranksMayDifferBetweenExpertsAndProjections() {
    TinyCheckpoint t =
        adapter(2, 8)
            .with("rank_pattern", Map.of("experts.3.up_proj", 5, "down_proj", 1))
            .with("alpha_pattern", Map.of("experts\\.[0-2]\\.up_proj", 4))
            .pair(EXPERTS + ".0.up_proj", DType.F16, d(2, H), d(I, 2))
            .pair(EXPERTS + ".3.up_proj", DType.F16, d(5, H), d(I, 5))
            .pair(EXPERTS + ".1.down_proj", DType.F16, d(1, I), d(H, 1));
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.DEFAULT);
    LoraFactors up = loaded.adapter().layer(1).get(LoraTarget.UP);
    assertThat(up.rank()).isEqualTo(5);
    assertThat(loaded.adapter().layer(1).get(LoraTarget.DOWN).rank()).isEqualTo(1);
    assertThat(loaded.adapter().layer(1).get(LoraTarget.GATE)).isNull();
    At atA =
        (e, j, i) ->
            e == 0 && j < 2
                ? a(t, EXPERTS + ".0.up_proj").get(j, i)
                : e == 3 ? a(t, EXPERTS + ".3.up_proj").get(j, i) : 0;
    At atB =
        (e, o, j) ->
            e == 0 && j < 2
                ? 4 / 2.0 * b(t, EXPERTS + ".0.up_proj").get(o, j)
                : e == 3 ? 8 / 5.0 * b(t, EXPERTS + ".3.up_proj").get(o, j) : 0;
    assertDelta(up, E, I, H, 5, 1, atA, atB);
    assertThat(loaded.report().notes())
        .anyMatch(n -> n.contains("ranks 2 to 5"))
        .anyMatch(n -> n.contains("2 of 4 experts"));
  }

  @ParameterizedTest
  @CsvSource({
    // version, A covers dimension 1 (out) or 2 (in) of [E, out, in]
    "0.17.1, DIM1",
    "0.18.1, DIM1",
    "0.19.0, DIM1",
    "0.19.1, DIM2",
    "0.20.0, DIM2",
    "0.21.0, DIM2",
    "1.0, DIM2",
    "0.22.0.dev0, DIM2"
  })
  void theSideOfSquareParametersByVersion(String version, FusedSide side) {
    AdapterTargetModel square = model("qwen3_moe", MoeConfig.builder(H, H, E, 2));
    int r = 2;
    TinyCheckpoint t =
        adapter(r, 2)
            .with("peft_version", version)
            .with("target_parameters", List.of("mlp.experts.down_proj"))
            .pair(EXPERTS, DType.F32, d(E * r, H), d(H, r * E));
    Tensor fileA = a(t, EXPERTS);
    Tensor fileB = b(t, EXPERTS);
    At rows = (e, j, i) -> fileA.get(e * r + j, i);
    At columns = (e, o, j) -> fileB.get(o, j * E + e);
    LoraFactors f = load(t, square).layer(1).get(LoraTarget.DOWN);
    if (side == FusedSide.DIM2) {
      assertDelta(f, E, H, H, r, 1, rows, columns);
    } else {
      // dW = (B A)^T
      assertDelta(
          f, E, H, H, r, 1, (e, j, i) -> columns.get(e, i, j), (e, o, j) -> rows.get(e, j, o));
    }
  }

  @ParameterizedTest
  @CsvSource({"0.18.1, true", "0.19.0, false", "0.19.1, true", "0.21.0, true", ", true"})
  void theSideOfGptOssSquareParametersByVersion(String version, boolean aReadsInput) {
    AdapterTargetModel square =
        model(
            "gpt_oss",
            MoeConfig.builder(H, H, E, 2).activation(Activation.SWIGLUOAI).expertBias(true));
    TinyCheckpoint t =
        adapter(2, 2)
            .with("peft_version", version)
            .with("target_parameters", List.of("down_proj"))
            .pair(EXPERTS, DType.F32, d(E * 2, H), d(H, 2 * E));
    LoraFactors f = load(t, square).layer(1).get(LoraTarget.DOWN);
    Tensor fileA = a(t, EXPERTS);
    assertThat(f.a().get(1, 1, 3))
        .isEqualTo(aReadsInput ? fileA.get(3, 3) : b(t, EXPERTS).get(3, 5));
  }

  @Test
  void aSquareParameterOfUnknownWriterIsRefusedUnlessSomethingTells() {
    AdapterTargetModel square = model("qwen3_moe", MoeConfig.builder(H, H, E, 2));
    for (String version : new String[] {null, "0.20.0.dev0", "nonsense"}) {
      TinyCheckpoint t =
          adapter(2, 2)
              .with("peft_version", version)
              .with("target_parameters", List.of("down_proj"))
              .pair(EXPERTS, DType.F32, d(E * 2, H), d(H, 2 * E));
      assertThatThrownBy(() -> load(t, square))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("square")
          .hasMessageContaining("withSide");
      PeftAdapter forced = load(t, square, AdapterPolicy.DEFAULT.withSide(FusedSide.DIM2));
      assertThat(forced.adapter().layer(1).get(LoraTarget.DOWN).a().get(0, 1, 2))
          .isEqualTo(a(t, EXPERTS).get(1, 2));
    }
    // The gate_up pair of the same file is not square and shows A on the output side.
    TinyCheckpoint t =
        fused(2, 2)
            .without("peft_version")
            .with("layers_pattern", null) // a PEFT that did not write its version yet
            .pair(EXPERTS + ".base_layer", DType.F32, d(E * 2, 2 * H), d(H, 2 * E))
            .pair(EXPERTS, DType.F32, d(E * 2, H), d(H, 2 * E));
    PeftAdapter loaded = load(t, square, AdapterPolicy.DEFAULT);
    assertThat(loaded.adapter().layer(1).get(LoraTarget.DOWN).b().get(1, 5, 0))
        .isEqualTo(a(t, EXPERTS).get(2, 5));
    assertThat(loaded.report().notes()).anyMatch(n -> n.contains("square"));
  }

  /** Names of nothing do not decide, and the report does not say that there were none. */
  @Test
  void targetParametersThatNameNothingAreSaid() {
    TinyCheckpoint t =
        adapter(2, 2)
            .with("target_parameters", List.of("nosuch"))
            .pair(EXPERTS, DType.F32, d(E * 2, I), d(H, 2 * E));
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.DEFAULT);
    assertThat(loaded.adapter().layer(1).get(LoraTarget.DOWN)).isNotNull();
    assertThat(loaded.report().notes())
        .contains(
            "target_parameters name [nosuch], no weight of these experts:"
                + " by its shape a pair belongs to down_proj");
  }

  @Test
  void shapesCountMoreThanTheVersion() {
    TinyCheckpoint t =
        adapter(2, 2)
            .with("target_parameters", List.of("down_proj"))
            .pair(EXPERTS, DType.F32, d(E * 2, H), d(I, 2 * E));
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.DEFAULT);
    assertThat(loaded.adapter().layer(1).get(LoraTarget.DOWN).b().get(1, 5, 0))
        .isEqualTo(a(t, EXPERTS).get(2, 5));
    assertThat(loaded.report().notes()).anyMatch(n -> n.contains("0.21.0"));
  }

  @Test
  void aLonePairWithoutTargetParameters() {
    TinyCheckpoint byShape = adapter(2, 2).pair(EXPERTS, DType.F32, d(E * 2, I), d(H, 2 * E));
    assertThat(load(byShape, qwen3()).layer(1).factors()).containsOnlyKeys(LoraTarget.DOWN);
    // H = 2I: [E, 2I, H] and [E, H, I] could both have sides H and H or I.
    AdapterTargetModel wide = model("qwen3_moe", MoeConfig.builder(H, 2 * H, E, 2));
    TinyCheckpoint other = adapter(2, 2).pair(EXPERTS, DType.F32, d(E * 2, H), d(4 * H, 2 * E));
    assertThat(load(other, wide).layer(1).factors())
        .containsOnlyKeys(LoraTarget.GATE, LoraTarget.UP);
    AdapterTargetModel ambiguous = nemotron(H, H, 0);
    TinyCheckpoint lone =
        adapter(2, 2).pair("model.layers.1.mixer.experts", DType.F32, d(E * 2, H), d(H, 2 * E));
    assertThatThrownBy(() -> load(lone, ambiguous))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("withSingleTarget");
    assertThat(
            load(lone, ambiguous, AdapterPolicy.DEFAULT.withSingleTarget("down_proj"))
                .adapter()
                .layer(1)
                .factors())
        .containsOnlyKeys(LoraTarget.DOWN);
  }

  @Test
  void targetParametersMayDifferByLayer() {
    TinyCheckpoint t =
        adapter(2, 2)
            .with(
                "target_parameters",
                List.of(
                    "layers.1.mlp.experts.down_proj", "model.layers.2.mlp.experts.gate_up_proj"))
            .pair(EXPERTS, DType.F32, d(E * 2, I), d(H, 2 * E))
            .pair("model.layers.2.mlp.experts", DType.F32, d(E * 2, H), d(2 * I, 2 * E));
    LoraAdapter loaded = load(t, qwen3());
    assertThat(loaded.layer(1).factors()).containsOnlyKeys(LoraTarget.DOWN);
    assertThat(loaded.layer(2).factors()).containsOnlyKeys(LoraTarget.GATE, LoraTarget.UP);
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "model.",
        "",
        "language_model.model.",
        "model.language_model.",
        "text_model.",
        "backbone.",
        "model.text_model."
      })
  void keysUnderAnyRootOfTheLanguageModel(String root) {
    TinyCheckpoint t =
        fused(2, 2)
            .pair(root + "layers.1.mlp.experts.base_layer", DType.F32, d(E * 2, H), d(2 * I, 2 * E))
            .pair(root + "layers.1.mlp.experts", DType.F32, d(E * 2, I), d(H, 2 * E))
            .pair("vision_tower.layers.1.mlp.gate", DType.F32, d(2, 8), d(8, 2));
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.DEFAULT);
    assertThat(loaded.adapter().layer(1).factors()).hasSize(3);
    assertThat(loaded.report().counts())
        .containsEntry(Disposition.APPLIED, 4)
        .containsEntry(Disposition.SKIPPED, 2);
  }

  @ParameterizedTest
  @CsvSource({
    "mlp, gate_proj up_proj down_proj", "mlp, w1 w3 w2",
    "block_sparse_moe, w1 w3 w2", "block_sparse_moe, gate_proj up_proj down_proj"
  })
  void mixtralUnderFileAndMemoryNames(String block, String names) {
    AdapterTargetModel mixtral = model("mixtral", MoeConfig.builder(H, I, E, 2));
    List<String> n = List.of(names.split(" ", -1));
    String experts = "model.layers.1." + block + ".experts.2.";
    TinyCheckpoint t =
        adapter(2, 2)
            .pair(experts + n.get(0), DType.F32, d(2, H), d(I, 2))
            .pair(experts + n.get(1), DType.F32, d(2, H), d(I, 2))
            .pair(experts + n.get(2), DType.F32, d(2, I), d(H, 2));
    LoraAdapter loaded = load(t, mixtral);
    assertThat(loaded.layer(1).get(LoraTarget.GATE).a().get(2, 1, 3))
        .isEqualTo(a(t, experts + n.get(0)).get(1, 3));
    assertThat(loaded.layer(1).get(LoraTarget.UP).a().get(2, 1, 3))
        .isEqualTo(a(t, experts + n.get(1)).get(1, 3));
    assertThat(loaded.layer(1).get(LoraTarget.DOWN).b().get(2, 7, 1))
        .isEqualTo(b(t, experts + n.get(2)).get(7, 1));
  }

  @Test
  void denseMapsOfTheBlock() {
    TinyCheckpoint t =
        adapter(2, 2)
            .pair(BLOCK + "shared_expert.gate_proj", DType.F32, d(2, H), d(20, 2))
            .pair(BLOCK + "shared_expert.up_proj", DType.F32, d(2, H), d(20, 2))
            .pair(BLOCK + "shared_expert.down_proj", DType.F32, d(2, 20), d(H, 2))
            .pair(BLOCK + "shared_expert_gate", DType.F32, d(2, H), d(1, 2));
    assertThat(load(t, qwen2()).layer(1).factors())
        .containsOnlyKeys(
            LoraTarget.SHARED_GATE,
            LoraTarget.SHARED_UP,
            LoraTarget.SHARED_DOWN,
            LoraTarget.SHARED_EXPERT_GATE);
    assertThatThrownBy(() -> load(t, qwen3())).isInstanceOf(AdapterRefusedException.class);
    String mixer = "backbone.layers.2.mixer.";
    TinyCheckpoint latent =
        adapter(2, 2)
            .pair(mixer + "fc1_latent_proj", DType.F32, d(2, H), d(6, 2))
            .pair(mixer + "fc2_latent_proj", DType.F32, d(2, 6), d(H, 2))
            .pair(mixer + "shared_experts.up_proj", DType.F32, d(2, H), d(20, 2))
            .pair(mixer + "experts.3.up_proj", DType.F32, d(2, 6), d(I, 2))
            .pair("backbone.layers.0.mixer.in_proj", DType.F32, d(2, H), d(50, 2));
    PeftAdapter loaded = load(latent, nemotron(H, I, 6), AdapterPolicy.DEFAULT);
    assertThat(loaded.adapter().layer(2).factors())
        .containsOnlyKeys(
            LoraTarget.UP, LoraTarget.SHARED_UP, LoraTarget.LATENT_IN, LoraTarget.LATENT_OUT);
    assertThat(loaded.report().counts()).containsEntry(Disposition.SKIPPED, 2);
    TinyCheckpoint gate =
        adapter(2, 2).pair(mixer + "experts.3.gate_proj", DType.F32, d(2, 6), d(I, 2));
    assertThatThrownBy(() -> load(gate, nemotron(H, I, 6))).hasMessageContaining("no gate");
  }

  @Test
  void graniteModulesThatHoldOneParameter() {
    AdapterTargetModel granite = model("granitemoe", MoeConfig.builder(H, I, E, 2));
    String block = "model.layers.1.block_sparse_moe.";
    TinyCheckpoint t =
        adapter(2, 2)
            .with(
                "target_parameters",
                List.of("block_sparse_moe.input_linear.weight", "output_linear.weight"))
            .pair(block + "input_linear", DType.F32, d(E * 2, H), d(2 * I, 2 * E))
            .pair(block + "output_linear", DType.F32, d(E * 2, I), d(H, 2 * E));
    LoraAdapter loaded = load(t, granite);
    Tensor a = a(t, block + "input_linear");
    Tensor b = b(t, block + "input_linear");
    assertDelta(
        loaded.layer(1).get(LoraTarget.UP),
        E,
        I,
        H,
        2,
        1,
        (e, j, i) -> a.get(e * 2 + j, i),
        (e, o, j) -> b.get(I + o, j * E + e));
    assertThat(loaded.layer(1).get(LoraTarget.DOWN)).isNotNull();
  }

  @Test
  void biasesOfGptOssExpertsAreRefusedOrSkipped() {
    AdapterTargetModel gptOss =
        model(
            "gpt_oss",
            MoeConfig.builder(H, I, E, 2).activation(Activation.SWIGLUOAI).expertBias(true));
    TinyCheckpoint t =
        adapter(2, 2)
            .with("target_parameters", List.of("down_proj", "gate_up_proj_bias", "gate_up_proj"))
            .pair(EXPERTS + ".base_layer.base_layer", DType.F32, d(E * 2, H), d(2 * I, 2 * E))
            .pair(EXPERTS + ".base_layer", DType.F32, d(2, 2 * I), d(E, 2))
            .pair(EXPERTS, DType.F32, d(E * 2, I), d(H, 2 * E));
    assertThatThrownBy(() -> load(t, gptOss))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("bias");
    PeftAdapter loaded = load(t, gptOss, AdapterPolicy.LENIENT);
    assertThat(loaded.adapter().layer(1).factors()).hasSize(3);
    assertThat(loaded.report().counts()).containsEntry(Disposition.SKIPPED, 2);
    Tensor b = b(t, EXPERTS + ".base_layer.base_layer");
    assertThat(loaded.adapter().layer(1).get(LoraTarget.UP).b().get(3, 5, 1))
        .as("interleaved: odd rows are up")
        .isEqualTo(b.get(11, E + 3));
  }

  @Test
  void namesWithTheAdaptersOwnNameInThem() {
    TinyCheckpoint t = adapter(2, 2);
    t.put("base_model.model." + EXPERTS + ".1.up_proj.lora_A.default.weight", DType.F32, 2, H);
    t.put("base_model.model." + EXPERTS + ".1.up_proj.lora_B.default.weight", DType.F32, I, 2);
    assertThat(load(t, qwen3()).layer(1).factors()).containsOnlyKeys(LoraTarget.UP);
    t.put("base_model.model." + EXPERTS + ".1.up_proj.lora_B.other.weight", DType.F32, I, 2);
    assertThatThrownBy(() -> load(t, qwen3())).hasMessageContaining("second lora_B");
  }

  @Test
  void scalesAreFoldedExactlyOrInF32() {
    String module = EXPERTS + ".0.down_proj";
    for (DType dtype : List.of(DType.BF16, DType.F16, DType.F32)) {
      TinyCheckpoint two = adapter(2, 8).pair(module, dtype, d(2, I), d(H, 2));
      Tensor b = load(two, qwen3()).layer(1).get(LoraTarget.DOWN).b();
      assertThat(b.dtype()).isEqualTo(dtype);
      assertThat(b.get(0, 3, 1)).isEqualTo(4 * b(two, module).get(3, 1));
      TinyCheckpoint odd =
          adapter(2, 3).with("use_rslora", true).pair(module, dtype, d(2, I), d(H, 2));
      Tensor f32 = load(odd, qwen3()).layer(1).get(LoraTarget.DOWN).b();
      assertThat(f32.dtype()).isEqualTo(DType.F32);
      assertThat(f32.get(0, 3, 1)).isEqualTo((float) (3 / Math.sqrt(2) * b(odd, module).get(3, 1)));
    }
    // 2^17 does not fit F16, 2^-20 times 1/16 not its normal range.
    for (double alpha : List.of(262144.0, 0x1p-30)) {
      TinyCheckpoint t = adapter(2, alpha).pair(module, DType.F16, d(2, I), d(H, 2));
      Tensor b = load(t, qwen3()).layer(1).get(LoraTarget.DOWN).b();
      assertThat(b.dtype()).isEqualTo(DType.F32);
      assertThat(b.get(0, 3, 1)).isEqualTo(alpha / 2 * b(t, module).get(3, 1));
    }
  }

  @Test
  void localExpertsOfARank() {
    int r = 2;
    TinyCheckpoint t =
        fused(r, 2)
            .pair(EXPERTS + ".base_layer", DType.F32, d(r, H), d(2 * I, r * E))
            .pair(EXPERTS, DType.F32, d(E * r, I), d(H, r * E));
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.DEFAULT);
    LoraFactors all = loaded.adapter().layer(1).get(LoraTarget.DOWN);
    for (ExpertMap map : List.of(ExpertMap.linear(E, 2, 1), ExpertMap.of(2, -1, 0, 1))) {
      LoraAdapter local = loaded.localExperts(map);
      LoraFactors down = local.layer(1).get(LoraTarget.DOWN);
      assertThat(down.numExperts()).isEqualTo(map.numLocalExperts());
      assertThat(local.layer(1).get(LoraTarget.GATE).a())
          .isSameAs(local.layer(1).get(LoraTarget.UP).a());
      for (int e = 0; e < E; e++) {
        if (map.local(e) >= 0) {
          assertThat(down.b(map.local(e)).toDoubles()).isEqualTo(all.b(e).toDoubles());
          assertThat(down.a(map.local(e)).toDoubles()).isEqualTo(all.a(e).toDoubles());
        }
      }
    }
    assertThatThrownBy(() -> loaded.localExperts(ExpertMap.linear(8, 2, 0)))
        .isInstanceOf(IllegalArgumentException.class);
  }
}
