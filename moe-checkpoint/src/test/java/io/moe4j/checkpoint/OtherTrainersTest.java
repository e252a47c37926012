package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * Adapter files that PEFT itself does not write: shared factors apart from their partners, three
 * dimensions under the names of wrappers, experts as lists of modules, placeholders.
 */
@NullUnmarked // a missing value fails the test where it is used
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
class OtherTrainersTest extends AdapterTestBase {
  private static final int R = 3;

  private static String key(String module, String factor) {
    return "base_model.model." + module + ".lora_" + factor + ".weight";
  }

  /** Shared A of gate and up, shared B of down, partners for some experts. */
  private static TinyCheckpoint sharedOuter(boolean threeDims, List<Integer> experts) {
    TinyCheckpoint t = adapter(R, 6);
    for (String p : List.of("gate_proj", "up_proj")) {
      t.put(key(EXPERTS + "." + p, "A"), DType.BF16, threeDims ? d(1, R, H) : d(R, H));
    }
    t.put(key(EXPERTS + ".down_proj", "B"), DType.BF16, threeDims ? d(1, H, R) : d(H, R));
    for (int e : experts) {
      t.put(key(EXPERTS + "." + e + ".gate_proj", "B"), DType.BF16, I, R);
      t.put(key(EXPERTS + "." + e + ".up_proj", "B"), DType.BF16, I, R);
      t.put(key(EXPERTS + "." + e + ".down_proj", "A"), DType.BF16, R, I);
    }
    return t;
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void sharedFactorsStandApartFromTheirPartners(boolean threeDims) {
    List<Integer> experts = List.of(0, 1, 3);
    TinyCheckpoint t = sharedOuter(threeDims, experts);
    PeftAdapter loaded = load(t, qwen3(), AdapterPolicy.STRICT);
    for (Map.Entry<String, LoraTarget> e :
        Map.of("gate_proj", LoraTarget.GATE, "up_proj", LoraTarget.UP).entrySet()) {
      Tensor a = t.tensors.get(key(EXPERTS + "." + e.getKey(), "A")).reshape(R, H);
      LoraFactors f = loaded.adapter().layer(1).get(e.getValue());
      assertThat(f.a().shape()).as("kept once").isEqualTo(d(1, R, H));
      At b =
          (x, o, j) ->
              x == 2 ? 0 : t.tensors.get(key(EXPERTS + "." + x + "." + e.getKey(), "B")).get(o, j);
      assertDelta(f, E, I, H, R, 2, (x, j, i) -> a.get(j, i), b);
    }
    Tensor b = t.tensors.get(key(EXPERTS + ".down_proj", "B")).reshape(H, R);
    LoraFactors down = loaded.adapter().layer(1).get(LoraTarget.DOWN);
    assertThat(down.b().shape()).as("kept once").isEqualTo(d(1, H, R));
    At a =
        (x, j, i) ->
            x == 2 ? 0 : t.tensors.get(key(EXPERTS + "." + x + ".down_proj", "A")).get(j, i);
    assertDelta(down, E, H, I, R, 2, a, (x, o, j) -> b.get(o, j));
    assertThat(loaded.report().counts()).containsEntry(Disposition.APPLIED, 3 + 9);
    assertThat(loaded.report().tensors())
        .filteredOn(x -> x.tensor().equals(key(EXPERTS + ".down_proj", "B")))
        .singleElement()
        .satisfies(x -> assertThat(x.targets()).containsExactly(LoraTarget.DOWN))
        .satisfies(x -> assertThat(x.reason()).contains("shared by 3"));
  }

  /**
   * VeOmni has three factors an expert on the two fused parameters that its config names: [E, r,
   * in] and [E, out, r], or one pair that all experts share.
   */
  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void veOmniKeepsGateAndUpApart(boolean shared) {
    TinyCheckpoint t = fused(R, 6);
    t.with("target_parameters", List.of("model.layers.*.mlp.experts.gate_up_proj"));
    t.with("veomni_lora", Map.of("moe_mode", shared ? "shared" : "independent"));
    for (String p : List.of("gate_proj", "up_proj", "down_proj")) {
      int in = p.equals("down_proj") ? I : H;
      int out = p.equals("down_proj") ? H : I;
      t.put(key(EXPERTS + "." + p, "A"), DType.BF16, shared ? d(R, in) : d(E, R, in));
      t.put(key(EXPERTS + "." + p, "B"), DType.BF16, shared ? d(out, R) : d(E, out, R));
    }
    LoraAdapter loaded = load(t, qwen3(), AdapterPolicy.STRICT).adapter();
    Map<String, LoraTarget> all =
        Map.of(
            "gate_proj", LoraTarget.GATE, "up_proj", LoraTarget.UP, "down_proj", LoraTarget.DOWN);
    for (Map.Entry<String, LoraTarget> e : all.entrySet()) {
      Tensor a = a(t, EXPERTS + "." + e.getKey());
      Tensor b = b(t, EXPERTS + "." + e.getKey());
      boolean down = e.getValue() == LoraTarget.DOWN;
      assertDelta(
          loaded.layer(1).get(e.getValue()),
          E,
          down ? H : I,
          down ? I : H,
          R,
          2,
          (x, j, i) -> shared ? a.get(j, i) : a.get(x, j, i),
          (x, o, j) -> shared ? b.get(o, j) : b.get(x, o, j));
    }
  }

  /** One module an expert, inside the block that was replaced. */
  @Test
  void kTransformersNamesTheBlockThatItReplaced() {
    TinyCheckpoint t = adapter(R, 6);
    String module = BLOCK + "original_moe.experts.2.down_proj";
    t.put(key(module, "A"), DType.BF16, R, I).put(key(module, "B"), DType.BF16, H, R);
    LoraFactors down =
        load(t, qwen3(), AdapterPolicy.STRICT).adapter().layer(1).get(LoraTarget.DOWN);
    Tensor a = a(t, module);
    Tensor b = b(t, module);
    assertDelta(
        down, E, H, I, R, 2, (x, j, i) -> a.get(j, i), (x, o, j) -> x == 2 ? b.get(o, j) : 0);
  }

  /** Read alone, adapter_model.safetensors would leave the experts as they are. */
  @Test
  void expertsInAFileOfTheirOwnAreRefused() throws IOException {
    TinyCheckpoint t = adapter(R, 6);
    t.put(key("model.layers.1.self_attn.q_proj", "A"), DType.BF16, R, H);
    t.put(key("model.layers.1.self_attn.q_proj", "B"), DType.BF16, H, R);
    Path directory = t.writeAdapter(dir);
    Files.copy(
        directory.resolve("adapter_model.safetensors"),
        directory.resolve("fused_expert_lora.safetensors"));
    assertThatThrownBy(() -> PeftAdapter.load(directory, "x", qwen3(), AdapterPolicy.LENIENT))
        .isInstanceOf(AdapterException.class)
        .hasMessageContaining("fused_expert_lora.safetensors")
        .hasMessageContaining("KTransformers");
  }

  @Test
  void aSharedFactorAtScalesThatDifferIsNotKeptOnce() {
    TinyCheckpoint t =
        sharedOuter(true, List.of(0, 1)).with("alpha_pattern", Map.of("experts.1.down_proj", 12));
    LoraFactors down = load(t, qwen3()).layer(1).get(LoraTarget.DOWN);
    Tensor b = t.tensors.get(key(EXPERTS + ".down_proj", "B"));
    assertThat(down.b(0).get(5, 1)).isEqualTo(2 * b.get(0, 5, 1));
    assertThat(down.b(1).get(5, 1)).isEqualTo(4 * b.get(0, 5, 1));
  }

  @Test
  void aSharedGateUpFactorServesBoth() {
    TinyCheckpoint t = adapter(R, 3).put(key(EXPERTS + ".gate_up_proj", "A"), DType.F32, 1, R, H);
    t.put(key(EXPERTS + ".2.gate_proj", "B"), DType.F32, I, R);
    t.put(key(EXPERTS + ".2.up_proj", "B"), DType.F32, I, R);
    t.put(key(EXPERTS + ".1.gate_up_proj", "B"), DType.F32, 2 * I, R);
    Tensor a = t.tensors.get(key(EXPERTS + ".gate_up_proj", "A"));
    Tensor one = t.tensors.get(key(EXPERTS + ".1.gate_up_proj", "B"));
    Tensor two = t.tensors.get(key(EXPERTS + ".2.up_proj", "B"));
    At b = (e, o, j) -> e == 1 ? one.get(I + o, j) : e == 2 ? two.get(o, j) : 0;
    LoraFactors up = load(t, qwen3()).layer(1).get(LoraTarget.UP);
    assertDelta(up, E, I, H, R, 1, (e, j, i) -> a.get(0, j, i), b);
  }

  @Test
  void whatNobodySharesIsStillMissing() {
    TinyCheckpoint t = sharedOuter(true, List.of(0, 1));
    t.drop(key(EXPERTS + ".up_proj", "A"));
    assertThatThrownBy(() -> load(t, qwen3(), AdapterPolicy.LENIENT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("lora_B without its lora_A");
    // Two modules that could both lend it: w3 is another name of up_proj.
    TinyCheckpoint twice = sharedOuter(true, List.of(0, 1));
    twice.put(key(EXPERTS + ".w3", "A"), DType.BF16, 1, R, H);
    assertThatThrownBy(() -> load(twice, qwen3())).hasMessageContaining("without its lora_A");
    // A factor an expert that is not shared, beside partners of single experts.
    TinyCheckpoint stacked = sharedOuter(true, List.of(0, 1));
    stacked.put(key(EXPERTS + ".up_proj", "A"), DType.BF16, E, R, H);
    assertThatThrownBy(() -> load(stacked, qwen3())).hasMessageContaining("without its lora_A");
    TinyCheckpoint rank = sharedOuter(true, List.of(0, 1));
    rank.put(key(EXPERTS + ".up_proj", "A"), DType.BF16, 1, R + 1, H);
    assertThatThrownBy(() -> load(rank, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("takes [r, 16] and [12, r]");
    TinyCheckpoint alone = adapter(R, 3);
    alone.put(key(EXPERTS + ".up_proj", "A"), DType.BF16, 1, R, H);
    assertThatThrownBy(() -> load(alone, qwen3())).hasMessageContaining("without its lora_B");
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void threeDimensionsUnderTheNamesOfWrappers(boolean expertsLast) {
    TinyCheckpoint t =
        fused(R, 3)
            .pair(
                EXPERTS + ".base_layer",
                DType.F32,
                d(1, R, H),
                expertsLast ? d(2 * I, R, E) : d(E, 2 * I, R))
            .pair(EXPERTS, DType.F32, d(E, R, I), expertsLast ? d(H, R, 1) : d(1, H, R));
    for (TinyCheckpoint file : List.of(t, t.without("target_parameters"))) {
      LoraAdapter loaded = load(file, qwen3());
      Tensor a = a(t, EXPERTS + ".base_layer");
      Tensor b = b(t, EXPERTS + ".base_layer");
      assertDelta(
          loaded.layer(1).get(LoraTarget.UP),
          E,
          I,
          H,
          R,
          1,
          (e, j, i) -> a.get(0, j, i),
          (e, o, j) -> expertsLast ? b.get(I + o, j, e) : b.get(e, I + o, j));
      Tensor a2 = a(t, EXPERTS);
      Tensor b2 = b(t, EXPERTS);
      assertDelta(
          loaded.layer(1).get(LoraTarget.DOWN),
          E,
          H,
          I,
          R,
          1,
          (e, j, i) -> a2.get(e, j, i),
          (e, o, j) -> expertsLast ? b2.get(o, j, 0) : b2.get(0, o, j));
    }
  }

  @Test
  void aLonePairOfThreeDimensionsBelongsToWhatItFits() {
    TinyCheckpoint down = adapter(R, 3).pair(EXPERTS, DType.F32, d(E, R, I), d(H, R, E));
    assertThat(load(down, qwen3()).layer(1).factors()).containsOnlyKeys(LoraTarget.DOWN);
    TinyCheckpoint none = fused(R, 3).pair(EXPERTS, DType.F32, d(E, R, I + 1), d(H, R, E));
    assertThatThrownBy(() -> load(none, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("[4 or 1, r, 12]")
        .hasMessageContaining("[16, r, 4 or 1]");
    // r = H = E: experts could come first or last.
    AdapterTargetModel cube = model("qwen3_moe", MoeConfig.builder(E, I, E, 2));
    TinyCheckpoint both = fused(E, 3).pair(EXPERTS, DType.F32, d(E, E, I), d(E, E, E));
    assertThatThrownBy(() -> load(both, cube)).isInstanceOf(AdapterRefusedException.class);
  }

  @Test
  void listsOfModulesWithGateAndUpTogether() {
    AdapterTargetModel gptOss =
        model(
            "gpt_oss",
            MoeConfig.builder(H, I, E, 2).activation(Activation.SWIGLUOAI).expertBias(true));
    TinyCheckpoint t =
        adapter(R, 3)
            .pair(EXPERTS + ".gate_up_projs.1", DType.F16, d(R, H), d(2 * I, R))
            .pair(EXPERTS + ".gate_up_projs.3", DType.F16, d(R, H), d(2 * I, R))
            .pair(EXPERTS + ".down_projs.0", DType.F16, d(R, I), d(H, R));
    LoraAdapter loaded = load(t, gptOss);
    At a = (e, j, i) -> e % 2 == 0 ? 0 : a(t, EXPERTS + ".gate_up_projs." + e).get(j, i);
    At up = (e, o, j) -> e % 2 == 0 ? 0 : b(t, EXPERTS + ".gate_up_projs." + e).get(2 * o + 1, j);
    assertDelta(loaded.layer(1).get(LoraTarget.UP), E, I, H, R, 1, a, up);
    At gate = (e, o, j) -> e % 2 == 0 ? 0 : b(t, EXPERTS + ".gate_up_projs." + e).get(2 * o, j);
    assertDelta(loaded.layer(1).get(LoraTarget.GATE), E, I, H, R, 1, a, gate);
    assertThat(loaded.layer(1).get(LoraTarget.DOWN).b().get(0, 7, 1))
        .isEqualTo(b(t, EXPERTS + ".down_projs.0").get(7, 1));
    TinyCheckpoint beyond =
        adapter(R, 3).pair(EXPERTS + ".gate_up_projs.4", DType.F16, d(R, H), d(2 * I, R));
    assertThatThrownBy(() -> load(beyond, gptOss)).hasMessageContaining("expert 4 of layer 1");
    TinyCheckpoint claimed = t.pair(EXPERTS + ".1.up_proj", DType.F16, d(R, H), d(I, R));
    assertThatThrownBy(() -> load(claimed, gptOss)).hasMessageContaining("already has factors");
  }

  @Test
  void expertsWithoutGateCallUpW1AndLeaveW3Empty() {
    String experts = "backbone.layers.1.mixer.experts";
    TinyCheckpoint t =
        adapter(R, 3)
            .pair(experts + ".w1", DType.F32, d(1, R, H), d(E, I, R))
            .pair(experts + ".w2", DType.F32, d(E, R, I), d(1, H, R))
            .pair(experts + ".w3", DType.F32, d(0), d(0));
    PeftAdapter loaded = load(t, nemotron(H, I, 0), AdapterPolicy.STRICT);
    Tensor a = a(t, experts + ".w1");
    Tensor b = b(t, experts + ".w1");
    LoraFactors up = loaded.adapter().layer(1).get(LoraTarget.UP);
    assertDelta(up, E, I, H, R, 1, (e, j, i) -> a.get(0, j, i), (e, o, j) -> b.get(e, o, j));
    assertThat(loaded.adapter().layer(1).factors())
        .containsOnlyKeys(LoraTarget.UP, LoraTarget.DOWN);
    assertThat(loaded.report().counts()).containsEntry(Disposition.SKIPPED, 2);
    TinyCheckpoint twice =
        adapter(R, 3)
            .pair(experts + ".w1", DType.F32, d(1, R, H), d(E, I, R))
            .pair(experts + ".w3", DType.F32, d(1, R, H), d(E, I, R));
    assertThatThrownBy(() -> load(twice, nemotron(H, I, 0)))
        .hasMessageContaining("already has factors");
  }
}
