package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * mlx-lm's adapters: {@code lora_a} and {@code lora_b} transposed for linear layers, in three
 * dimensions for experts, and a scale that no rank divides.
 */
@NullUnmarked // a missing value fails the test where it is used
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
class MlxAdapterTest extends AdapterTestBase {
  private static final int R = 3;
  private static final double SCALE = 2.5;
  private static final Map<String, LoraTarget> PROJECTIONS =
      Map.of("gate_proj", LoraTarget.GATE, "up_proj", LoraTarget.UP, "down_proj", LoraTarget.DOWN);

  private static TinyCheckpoint mlx() {
    return new TinyCheckpoint()
        .with("fine_tune_type", "lora")
        .with("num_layers", 16)
        .with("model", "mlx-community/tiny-4bit")
        .with("lora_parameters", parameters(SCALE));
  }

  private static Map<String, Object> parameters(Object scale) {
    Map<String, Object> p = new HashMap<>(Map.of("rank", R, "dropout", 0.0));
    p.put("scale", scale);
    return p;
  }

  /** Factors of a linear layer. */
  private static void linear(TinyCheckpoint t, String module, int in, int out) {
    t.put(module + ".lora_a", DType.BF16, in, R).put(module + ".lora_b", DType.BF16, R, out);
  }

  /** Factors of all experts of one projection. */
  private static void experts(TinyCheckpoint t, String module, int in, int out) {
    t.put(module + ".lora_a", DType.F32, E, R, in).put(module + ".lora_b", DType.F32, E, out, R);
  }

  private PeftAdapter read(TinyCheckpoint t, AdapterTargetModel model) {
    return load(t.writeMlx(dir), model, AdapterPolicy.DEFAULT);
  }

  private static void assertExperts(
      TinyCheckpoint t, LoraAdapter loaded, LoraTarget target, String module, double scale) {
    boolean down = target == LoraTarget.DOWN;
    Tensor a = t.tensors.get(module + ".lora_a");
    Tensor b = t.tensors.get(module + ".lora_b");
    assertDelta(
        loaded.layer(1).get(target),
        E,
        down ? H : I,
        down ? I : H,
        R,
        scale,
        (e, j, i) -> a.dims() == 3 ? a.get(e, j, i) : a.get(e * R + j, i),
        (e, o, j) -> b.get(e, o, j));
  }

  /** Factors of all experts in three dimensions, or A with the experts folded into its rows. */
  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void experts(boolean folded) {
    TinyCheckpoint t = mlx();
    for (Map.Entry<String, LoraTarget> p : PROJECTIONS.entrySet()) {
      boolean down = p.getValue() == LoraTarget.DOWN;
      String module = BLOCK + "switch_mlp." + p.getKey();
      experts(t, module, down ? I : H, down ? H : I);
      if (folded) {
        t.put(module + ".lora_a", DType.F32, E * R, down ? I : H);
      }
    }
    linear(t, "model.layers.1.self_attn.q_proj", H, H);
    PeftAdapter loaded = read(t, qwen3());
    PROJECTIONS.forEach((name, target) ->
        assertExperts(t, loaded.adapter(), target, BLOCK + "switch_mlp." + name, SCALE));
    assertThat(loaded.report().counts())
        .containsEntry(Disposition.APPLIED, 6)
        .containsEntry(Disposition.SKIPPED, 2);
    assertThat(loaded.report().tensors())
        .filteredOn(x -> x.tensor().endsWith("q_proj.lora_a"))
        .singleElement()
        .satisfies(x -> assertThat(x.described()).isEqualTo("BF16[16, 3]"));
    assertThat(loaded.report().config().baseModel()).contains("mlx-community/tiny-4bit");
  }

  /** In and out are transposed in the file; a wrong turn would not fit, or give another delta. */
  @ParameterizedTest
  @ValueSource(ints = {20, H}) // H: square, so that only the values tell
  void linearLayersInABlock(int shared) {
    AdapterTargetModel model =
        model(
            "qwen2_moe",
            MoeConfig.builder(H, I, E, 2)
                .sharedExpert(new SharedExpertConfig(shared, Activation.SILU, true)));
    TinyCheckpoint t = mlx();
    linear(t, BLOCK + "shared_expert.up_proj", H, shared);
    linear(t, BLOCK + "shared_expert.down_proj", shared, H);
    linear(t, BLOCK + "shared_expert_gate", H, 1);
    LoraAdapter loaded = read(t, model).adapter();
    assertLinear(t, loaded, LoraTarget.SHARED_UP, "shared_expert.up_proj", H, shared);
    assertLinear(t, loaded, LoraTarget.SHARED_DOWN, "shared_expert.down_proj", shared, H);
    assertLinear(t, loaded, LoraTarget.SHARED_EXPERT_GATE, "shared_expert_gate", H, 1);
  }

  private static void assertLinear(
      TinyCheckpoint t, LoraAdapter loaded, LoraTarget target, String module, int in, int out) {
    Tensor a = t.tensors.get(BLOCK + module + ".lora_a");
    Tensor b = t.tensors.get(BLOCK + module + ".lora_b");
    assertDelta(
        loaded.layer(1).get(target),
        1,
        out,
        in,
        R,
        SCALE,
        (e, j, i) -> a.get(i, j),
        (e, o, j) -> b.get(j, o));
  }

  /** By default mlx-lm trains all linear layers, and in most families the router is one. */
  @Test
  void theRouterIsTheCallersDecision() {
    TinyCheckpoint t = mlx();
    linear(t, BLOCK + "gate", H, E);
    Path written = t.writeMlx(dir);
    assertThatThrownBy(() -> load(written, qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("withRouter(true)");
    LoraAdapter loaded =
        PeftAdapter.load(written, "x", qwen3(), AdapterPolicy.DEFAULT.withRouter(true)).adapter();
    assertLinear(t, loaded, LoraTarget.ROUTER, "gate", H, E);
  }

  /** Where the experts stand in mlx-lm's modelling code. */
  @ParameterizedTest
  @CsvSource({
    "mixtral, model.layers.1.block_sparse_moe.switch_mlp.",
    "gpt_oss, model.layers.1.mlp.experts.",
    "granitemoe, model.layers.1.block_sparse_moe.switch_mlp.",
    "gemma4_text, model.layers.1.experts.switch_glu.",
    "lfm2_moe, model.layers.1.feed_forward.switch_mlp.",
    "llama4_text, language_model.model.layers.1.feed_forward.experts.",
    "qwen3_5_moe_text, language_model.model.layers.1.mlp.switch_mlp.",
    "deepseek_v3, model.layers.1.mlp.switch_mlp.",
    "afmoe, model.layers.1.mlp.experts."
  })
  void namesOfFamilies(String type, String prefix) {
    MoeConfig.Builder config = MoeConfig.builder(H, I, E, 2);
    if (type.equals("gpt_oss")) {
      config.activation(Activation.SWIGLUOAI).expertBias(true);
    }
    TinyCheckpoint t = mlx();
    PROJECTIONS.forEach((name, target) -> {
      boolean down = target == LoraTarget.DOWN;
      experts(t, prefix + name, down ? I : H, down ? H : I);
    });
    LoraAdapter loaded = read(t, model(type, config)).adapter();
    PROJECTIONS.forEach((name, target) -> assertExperts(t, loaded, target, prefix + name, SCALE));
  }

  @Test
  void expertsWithoutGateNumberTheirLayers() {
    TinyCheckpoint t = mlx();
    String experts = "backbone.layers.1.mixer.switch_mlp.";
    experts(t, experts + "fc1", H, I);
    experts(t, experts + "fc2", I, H);
    LoraAdapter loaded = read(t, nemotron(H, I, 0)).adapter();
    assertExperts(t, loaded, LoraTarget.UP, experts + "fc1", SCALE);
    assertExperts(t, loaded, LoraTarget.DOWN, experts + "fc2", SCALE);
    assertThat(loaded.layer(1).factors()).hasSize(2);
  }

  /** Unsloth on MLX calls itself LORA and repeats the parameters for mlx-vlm. */
  @Test
  void unslothsConfig() {
    String module = BLOCK + "switch_mlp.up_proj";
    TinyCheckpoint t =
        mlx().with("peft_type", "LORA").with("rank", R).with("scale", SCALE).with("dropout", 0.0);
    experts(t, module, H, I);
    assertExperts(t, read(t, qwen3()).adapter(), LoraTarget.UP, module, SCALE);
  }

  /** alpha was multiplied in once, and was written for a year without being used. */
  @Test
  void alphaCountsOnlyWhereItIsKnownNotTo() {
    String module = BLOCK + "switch_mlp.up_proj";
    Map<String, Object> parameters = parameters(SCALE);
    parameters.put("alpha", 16);
    TinyCheckpoint t = mlx().with("lora_parameters", parameters);
    experts(t, module, H, I);
    assertExperts(t, read(t, qwen3()).adapter(), LoraTarget.UP, module, SCALE);
    t.without("num_layers").with("lora_layers", 16);
    assertThatThrownBy(() -> read(t, qwen3()))
        .isInstanceOf(AdapterException.class)
        .hasMessageContaining("(lora_parameters): scale is 2.5 and alpha 16 at rank 3")
        .hasMessageContaining("13.33");
    parameters.put("alpha", R);
    assertExperts(t, read(t, qwen3()).adapter(), LoraTarget.UP, module, SCALE);
  }

  @Test
  void doraIsRefused() {
    for (TinyCheckpoint t :
        List.of(mlx().with("fine_tune_type", "dora"), mlx().with("use_dora", true))) {
      experts(t, BLOCK + "switch_mlp.up_proj", H, I);
      assertThatThrownBy(() -> read(t, qwen3()))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("DoRA");
    }
    TinyCheckpoint magnitude = mlx().put(BLOCK + "shared_expert.up_proj.m", DType.F32, 20);
    linear(magnitude, BLOCK + "shared_expert.up_proj", H, 20);
    assertThatThrownBy(() -> read(magnitude, qwen2()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("DoRA magnitude");
  }

  @Test
  void wholeWeightsAreNoFactors() {
    TinyCheckpoint full =
        mlx().with("fine_tune_type", "full").put(BLOCK + "gate.weight", DType.F32, E, H);
    assertThatThrownBy(() -> read(full, qwen3()))
        .isInstanceOf(AdapterException.class)
        .hasMessageContaining("fine_tune_type is 'full'");
    TinyCheckpoint beside = mlx().put(BLOCK + "gate.weight", DType.F32, E, H);
    experts(beside, BLOCK + "switch_mlp.up_proj", H, I);
    assertThatThrownBy(() -> read(beside, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("a weight or bias of the block itself");
  }

  @Test
  void configsThatDoNotTellTheScale() {
    String module = BLOCK + "switch_mlp.up_proj";
    TinyCheckpoint t = mlx();
    experts(t, module, H, I);
    for (Object scale : new Object[] {null, "2", List.of(1.0)}) {
      t.with("lora_parameters", parameters(scale));
      assertThatThrownBy(() -> read(t, qwen3()))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("adapter_config.json (lora_parameters)")
          .hasMessageContaining("'scale'");
    }
    t.with("lora_parameters", Map.of("rank", R + 1, "scale", SCALE));
    assertThatThrownBy(() -> read(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("its factors have rank 3; lora_parameters say 4");
    TinyCheckpoint old = new TinyCheckpoint().with("rank", R).with("alpha", 0.1);
    old.put("language_model.model.layers.1.mlp.gate.A", DType.F32, H, R);
    assertThatThrownBy(() -> read(old, qwen3()))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("lacks 'lora_parameters'")
        .hasMessageContaining("mlx-vlm");
  }

  @Test
  void shapesThatDoNotFitAreShown() {
    TinyCheckpoint t = mlx();
    t.put(BLOCK + "shared_expert.up_proj.lora_a", DType.F32, R, H);
    t.put(BLOCK + "shared_expert.up_proj.lora_b", DType.F32, 20, R);
    assertThatThrownBy(() -> read(t, qwen2()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("lora_a is F32[3, 16] and lora_b F32[20, 3]; SHARED_UP of layer 1")
        .hasMessageContaining("takes [16, r] and [r, 20]");
    TinyCheckpoint transposed = mlx();
    transposed.put(BLOCK + "switch_mlp.up_proj.lora_a", DType.F32, E, H, R);
    transposed.put(BLOCK + "switch_mlp.up_proj.lora_b", DType.F32, E, I, R);
    assertThatThrownBy(() -> read(transposed, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("[4 or 1, r, 16] and [4 or 1, 12, r]");
  }

  @Test
  void whoseWeightsAreMeant() throws IOException {
    String module = BLOCK + "switch_mlp.up_proj";
    TinyCheckpoint both = mlx().with("r", R).with("lora_alpha", 6);
    experts(both, module, H, I);
    assertExperts(both, read(both, qwen3()).adapter(), LoraTarget.UP, module, SCALE);
    Files.copy(dir.resolve("adapters.safetensors"), dir.resolve("adapter_model.safetensors"));
    assertThatThrownBy(() -> read(both, qwen3()))
        .isInstanceOf(AdapterException.class)
        .hasMessageContaining("leave one of the two");
    Files.delete(dir.resolve("adapter_model.safetensors"));
    Path steps = dir.resolve("steps");
    mlx().writeMlx(steps);
    for (String step : List.of("0000200", "0000100")) {
      Files.copy(
          dir.resolve("adapters.safetensors"), steps.resolve(step + "_adapters.safetensors"));
    }
    Files.delete(steps.resolve("adapters.safetensors"));
    assertThatThrownBy(() -> load(steps, qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("0000200_adapters.safetensors is there");
  }

  /** Shapes that PEFT and others write under these names, whose orders mlx-lm does not have. */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "qwen3_moe | mlp.experts | 16,12 | 12,24",
        "qwen3_moe | mlp.experts | 4,3,16 | 4,24,3",
        "qwen3_moe | mlp.switch_mlp.gate_up_proj | 4,3,16 | 4,24,3",
        "qwen3_moe | mlp.experts.2.gate_up_proj | 16,3 | 3,24",
        "granitemoe | block_sparse_moe.input_linear | 16,12 | 12,24"
      })
  void gateAndUpInOneModule(String type, String module, String a, String b) {
    TinyCheckpoint t = mlx();
    String name = "model.layers.1." + module;
    t.put(name + ".lora_a", DType.F32, sizes(a)).put(name + ".lora_b", DType.F32, sizes(b));
    Path written = t.writeMlx(dir);
    for (AdapterPolicy policy : List.of(AdapterPolicy.DEFAULT, AdapterPolicy.LENIENT)) {
      assertThatThrownBy(() -> load(written, model(type, MoeConfig.builder(H, I, E, 2)), policy))
          .isInstanceOf(AdapterRefusedException.class)
          .hasMessageContaining("gate_proj, up_proj and down_proj of experts apart");
    }
  }

  private static long[] sizes(String text) {
    return Stream.of(text.split(",")).mapToLong(Long::parseLong).toArray();
  }

  @Test
  void expertsInTwoDimensionsAreShownAsTheyAreStored() {
    String module = BLOCK + "switch_mlp.up_proj";
    TinyCheckpoint t = mlx();
    linear(t, module, H, I);
    assertThatThrownBy(() -> read(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("lora_a is BF16[16, 3] and lora_b BF16[3, 12]")
        .hasMessageContaining("[E, r, in] and [E, out, r], or [E*r, in] for lora_a");
  }

  @Test
  void factorsUnderPeftsNames() {
    TinyCheckpoint t = mlx();
    t.put(BLOCK + "experts.0.up_proj.lora_A.weight", DType.F32, R, H);
    t.put(BLOCK + "experts.0.up_proj.lora_B.weight", DType.F32, I, R);
    assertThatThrownBy(() -> read(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("a name that mlx-lm does not write; accepted are NAME.lora_a");
  }

  /** Where transformers goes past what PEFT wraps, mlx-lm's own code does not. */
  @Test
  void aRouterThatPeftDoesNotReach() {
    AdapterTargetModel model = model("longcat_flash", MoeConfig.builder(H, I, E, 2));
    TinyCheckpoint t = mlx();
    linear(t, BLOCK + "router.classifier", H, E);
    Path written = t.writeMlx(dir);
    assertThatThrownBy(() -> load(written, model, AdapterPolicy.DEFAULT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("withRouter(true)");
    LoraAdapter loaded =
        PeftAdapter.load(written, "x", model, AdapterPolicy.DEFAULT.withRouter(true)).adapter();
    assertLinear(t, loaded, LoraTarget.ROUTER, "router.classifier", H, E);
  }

  @Test
  void twoNamesOfOneProjection() {
    TinyCheckpoint t = mlx();
    experts(t, BLOCK + "switch_mlp.up_proj", H, I);
    experts(t, BLOCK + "experts.up_proj", H, I);
    assertThatThrownBy(() -> read(t, qwen3()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("a second lora_A");
  }

  @Test
  void valuesThatAreNotFinite() {
    TinyCheckpoint t = mlx();
    linear(t, BLOCK + "shared_expert.up_proj", H, 20);
    t.tensors.get(BLOCK + "shared_expert.up_proj.lora_b").set(Double.NaN, 1, 7);
    assertThatThrownBy(() -> read(t, qwen2()))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("NaN or infinite");
  }
}
