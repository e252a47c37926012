package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

@NullUnmarked // a missing value fails the test where it is used
class CheckpointLayoutsTest {
  @TempDir Path dir;

  private static void assertSame(Tensor actual, Tensor expected) {
    assertThat(actual.shape()).isEqualTo(expected.shape());
    assertThat(actual.toDoubles()).isEqualTo(expected.toDoubles());
  }

  private static void assertSame(MoeLayerWeights actual, MoeLayerWeights expected) {
    assertSame(actual.router().weight(), expected.router().weight());
    for (int e = 0; e < expected.experts().numExperts(); e++) {
      ExpertWeights.Expert a = actual.experts().expert(e);
      ExpertWeights.Expert x = expected.experts().expert(e);
      assertSame(a.gate().plain(), x.gate().plain());
      assertSame(a.up().plain(), x.up().plain());
      assertSame(a.down().plain(), x.down().plain());
    }
  }

  @Test
  void theShardedFixtureIsOpened() {
    try (MoeCheckpoint c = MoeCheckpoint.open(Fixtures.model("qwen3_moe"))) {
      assertThat(c.layers()).containsExactly(0, 1);
      MoeConfig config = c.config(1);
      assertThat(config.hiddenSize()).isEqualTo(128);
      assertThat(config.intermediateSize()).isEqualTo(96);
      assertThat(config.numExperts()).isEqualTo(16);
      assertThat(config.topK()).isEqualTo(4);
      assertThat(config.weightDtype()).isEqualTo(DType.BF16);
      assertThat(config.routing()).isEqualTo(RoutingConfig.SOFTMAX_RENORMALIZE);
      assertThat(config.activation()).isEqualTo(Activation.SILU);
      c.weights(1).requireFits(config);
      MoeConfig more = config.toBuilder().lora(new LoraConfig(8, 64)).maxTokens(17).build();
      c.weights(0).requireFits(more);
      CheckpointDescription d = c.describe();
      assertThat(d.files()).hasSizeGreaterThan(1);
      assertThat(d.layers()).hasSize(2);
      assertThat(d.layers().getFirst().routing())
          .isEqualTo("top 4 of 16 experts, softmax over all, weights renormalised");
      assertThat(d.bytes())
          .isEqualTo(d.files().stream().mapToLong(CheckpointDescription.File::bytes).sum());
      assertThatThrownBy(() -> c.config(7)).hasMessageContaining("[0, 1]");
    }
  }

  @ParameterizedTest
  @CsvSource({"qwen3_moe, false", "qwen2_moe, false", "qwen3_next, true"})
  void anAbsentKeyMeansWhatItsFamilySays(String type, boolean renormalize) {
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("model_type", type).without("norm_topk_prob");
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.config(1).routing().renormalize()).isEqualTo(renormalize);
    }
  }

  @Test
  void configsOfPythonMayHoldInfinity() throws Exception {
    // nemotron_h's time_step_limit, as transformers 4 wrote it; routed_scaling_factor is read.
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("time_step_limit", List.of(0, "INFINITY"));
    Path model = t.writeModel(dir);
    Path config = model.resolve("config.json");
    Files.writeString(config, Files.readString(config).replace("\"INFINITY\"", "Infinity"));
    try (MoeCheckpoint c = MoeCheckpoint.open(model)) {
      assertThat(c.layers()).containsExactly(1, 2);
    }
    for (String word : List.of("NaN", "Infinity", "-Infinity")) {
      Files.writeString(
          config,
          Files.readString(config).replaceAll("\"hidden_size\":[^,]+", "\"hidden_size\":" + word));
      assertThatThrownBy(() -> MoeCheckpoint.open(model))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("'hidden_size' is " + word);
    }
  }

  @Test
  void routingInWordsSaysEverything() {
    try (MoeCheckpoint c = MoeCheckpoint.open(Fixtures.model("deepseek_v3"))) {
      assertThat(c.layers()).containsExactly(1, 2);
      assertThat(CheckpointDescription.routingInWords(c.config(1)))
          .isEqualTo(
              "top 4 of 16 experts, sigmoid, correction bias for the choice only, best 2 of 4 groups"
                  + " by the sum of their two best, weights renormalised, scaled by 2.5");
      assertThat(c.weights(1).router().correctionBias().dtype()).isEqualTo(DType.F32);
      assertThat(c.config(1).sharedExpert().orElseThrow().intermediateSize()).isEqualTo(96);
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "model.",
        "language_model.model.",
        "model.language_model.",
        "text_model.",
        "backbone.",
        "language_model.",
        "model.text_model.layers_wrapper."
      })
  void blocksAreFoundUnderAnyRoot(String root) {
    TinyCheckpoint plain = TinyCheckpoint.qwen3();
    TinyCheckpoint wrapped = renamed(plain, n -> n.replaceFirst("^model\\.", root));
    wrapped.put("vision_model.layers.1.mlp.fc1.weight", DType.BF16, 4, 4);
    wrapped.put("mtp.layers.1.mlp.experts.0.up_proj.weight", DType.BF16, 4, 4);
    Path a = plain.writeModel(dir.resolve("a"));
    Path b = wrapped.writeModel(dir.resolve("b"));
    try (MoeCheckpoint x = MoeCheckpoint.open(a);
        MoeCheckpoint y = MoeCheckpoint.open(b)) {
      assertThat(y.layers()).containsExactly(1, 2);
      assertThat(y.root()).isEqualTo(root);
      assertThat(y.notes()).anyMatch(n -> n.contains("mtp."));
      assertSame(y.weights(2), x.weights(2));
    }
  }

  private static TinyCheckpoint renamed(TinyCheckpoint t, UnaryOperator<String> name) {
    TinyCheckpoint copy = new TinyCheckpoint();
    copy.config.putAll(t.config);
    t.tensors.forEach((n, tensor) -> copy.tensors.put(name.apply(n), tensor));
    return copy;
  }

  @ParameterizedTest
  @ValueSource(strings = {"text_config", "llm_config", "language_config"})
  void theConfigMayBeOneLevelDown(String key) {
    TinyCheckpoint t = TinyCheckpoint.qwen3();
    Map<String, Object> text = new LinkedHashMap<>(t.config);
    t.config.clear();
    t.with("model_type", "some_vision_model").with("hidden_size", 7).with(key, text);
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.modelType()).isEqualTo("qwen3_moe");
      assertThat(c.config(1).hiddenSize()).isEqualTo(TinyCheckpoint.H);
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"num_experts", "num_local_experts", "n_routed_experts"})
  void oldAndNewNamesOfTheExpertCount(String name) {
    TinyCheckpoint t = TinyCheckpoint.qwen3().without("num_experts").with(name, TinyCheckpoint.E);
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.config(2).numExperts()).isEqualTo(TinyCheckpoint.E);
    }
  }

  @ParameterizedTest
  @CsvSource({
    "silu, SILU",
    "swish, SILU",
    "gelu, GELU",
    "gelu_new, GELU_TANH",
    "gelu_pytorch_tanh, GELU_TANH"
  })
  void activationsByName(String name, Activation.Kind kind) {
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("hidden_act", name);
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.config(1).activation().kind()).isEqualTo(kind);
    }
  }

  @Test
  void stackedTensorsAreViewedInPlace() {
    // [E, 2I, H] with gate rows first, and [E, H, I].
    TinyCheckpoint t = TinyCheckpoint.qwen3();
    t.tensors.keySet().removeIf(n -> n.contains(".experts."));
    int e = TinyCheckpoint.E;
    int h = TinyCheckpoint.H;
    int i = TinyCheckpoint.I;
    for (int layer = 1; layer <= 2; layer++) {
      String block = "model.layers." + layer + ".mlp.experts.";
      t.put(block + "gate_up_proj", DType.F16, e, 2 * i, h);
      t.put(block + "down_proj", DType.F16, e, h, i);
    }
    Tensor w13 = t.tensors.get("model.layers.2.mlp.experts.gate_up_proj");
    Tensor w2 = t.tensors.get("model.layers.2.mlp.experts.down_proj");
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.config(1).weightDtype()).isEqualTo(DType.F16);
      for (int x = 0; x < e; x++) {
        ExpertWeights.Expert expert = c.weights(2).experts().expert(x);
        assertThat(expert.gate().values().get(3, 5)).isEqualTo(w13.get(x, 3, 5));
        assertThat(expert.up().values().get(3, 5)).isEqualTo(w13.get(x, i + 3, 5));
        assertThat(expert.down().values().get(9, 2)).isEqualTo(w2.get(x, 9, 2));
      }
    }
  }

  @Test
  void gptOssViewsAreTransposedAndInterleaved() {
    try (MoeCheckpoint c = MoeCheckpoint.open(Fixtures.model("gpt_oss"))) {
      Tensor w13 = c.tensors().get("model.layers.1.mlp.experts.gate_up_proj");
      Tensor b13 = c.tensors().get("model.layers.1.mlp.experts.gate_up_proj_bias");
      Tensor w2 = c.tensors().get("model.layers.1.mlp.experts.down_proj");
      ExpertWeights.Expert x = c.weights(1).experts().expert(3);
      assertThat(x.gate().values().get(10, 20)).isEqualTo(w13.get(3, 20, 20));
      assertThat(x.up().values().get(10, 20)).isEqualTo(w13.get(3, 20, 21));
      assertThat(x.down().values().get(10, 20)).isEqualTo(w2.get(3, 20, 10));
      assertThat(x.upBias().get(10)).isEqualTo(b13.get(3, 21));
      assertThat(c.config(1).expertBias()).isTrue();
      assertThat(c.config(1).activation()).isEqualTo(Activation.SWIGLUOAI);
      assertThat(c.weights(1).router().bias()).isNotNull();
    }
  }

  @Test
  void expertMapsPickExperts() {
    try (MoeCheckpoint c = MoeCheckpoint.open(Fixtures.model("mixtral"))) {
      ExpertMap map = ExpertMap.of(-1, 2, -1, 0, -1, -1, 1, -1);
      ExpertWeights local = c.weights(0, map).experts();
      assertThat(local.numExperts()).isEqualTo(3);
      assertSame(local.expert(0).up().plain(), c.weights(0).experts().expert(3).up().plain());
      assertSame(local.expert(1).up().plain(), c.weights(0).experts().expert(6).up().plain());
      assertSame(local.expert(2).up().plain(), c.weights(0).experts().expert(1).up().plain());
      c.weights(0, map)
          .requireFits(
              c.config(0).toBuilder().parallel(ParallelConfig.expert(2, 0)).expertMap(map).build());
    }
  }

  @Test
  void anUnknownModelTypeIsExplainedAndCanBeDescribed() {
    TinyCheckpoint t =
        renamed(
            TinyCheckpoint.qwen3().with("model_type", "house_moe"),
            n ->
                n.replace(".layers.", ".stack.")
                    .replace(".mlp.experts.", ".moe.bank.")
                    .replace(".mlp.gate.weight", ".moe.router.weight"));
    Path model = t.writeModel(dir);
    assertThatThrownBy(() -> MoeCheckpoint.open(model))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("'house_moe'")
        .hasMessageContaining("qwen3_moe")
        .hasMessageContaining("nemotron_h")
        .hasMessageContaining("CheckpointLayout.builder");
    CheckpointLayout layout =
        CheckpointLayout.builder("house_moe")
            .block("stack.{L}.moe")
            .perExpert("bank.{E}.gate_proj", "bank.{E}.up_proj", "bank.{E}.down_proj")
            .router("router.weight")
            .rules(
                new CheckpointLayout.Rules() {
                  @Override
                  public MoeConfig.Builder block(ModelConfig config, int layer) {
                    return MoeConfig.builder(
                        config.requireInt("hidden_size"),
                        config.requireInt("moe_intermediate_size"),
                        config.requireInt("num_experts"),
                        config.requireInt("num_experts_per_tok"));
                  }

                  @Override
                  public boolean isMoeLayer(ModelConfig config, int layer) {
                    return layer > 0;
                  }
                })
            .build();
    try (MoeCheckpoint c =
        MoeCheckpoint.open(model, CheckpointOptions.DEFAULT.withLayout(layout))) {
      assertThat(c.layers()).containsExactly(1, 2);
      assertSame(
          c.weights(1).experts().expert(2).down().plain(),
          t.tensors.get("model.stack.1.moe.bank.2.down_proj.weight"));
      Path adapter =
          TinyCheckpoint.adapter(2, 2)
              .pair(
                  "model.stack.2.moe.bank.3.up_proj",
                  DType.F32,
                  new long[] {2, TinyCheckpoint.H},
                  new long[] {TinyCheckpoint.I, 2})
              .writeAdapter(dir.resolve("adapter"));
      assertThat(
              PeftAdapter.load(adapter, "a", c, AdapterPolicy.DEFAULT).adapter().layer(2).factors())
          .containsOnlyKeys(LoraTarget.UP);
    }
  }

  /** Low half of a byte first, gate and up rows in turn, one exponent for 32 columns. */
  @Test
  void expertsInMxfp4() {
    TinyCheckpoint t = TinyCheckpoint.gptOssMxfp4();
    Tensor blocks = t.tensors.get("model.layers.0.mlp.experts.gate_up_proj_blocks");
    Tensor scales = t.tensors.get("model.layers.0.mlp.experts.gate_up_proj_scales");
    blocks.set(0x7 << 4 | 0x9, 2, 5, 1, 3); // 6 and -0.5
    scales.set(130, 2, 5, 1);
    Path model = t.writeModel(dir.resolve("mxfp4"));
    try (MoeCheckpoint c = MoeCheckpoint.open(model)) {
      assertThat(c.config(0).quantSchemes()).containsExactly(QuantScheme.MXFP4);
      assertThat(c.config(0).weightDtype()).isEqualTo(DType.BF16);
      ExpertWeights.Expert expert = c.weights(0).experts().expert(2);
      // row 5 of interleaved rows is up row 2; group 1, byte 3 holds columns 38 and 39
      assertThat(expert.up().values().get(2, 38)).isEqualTo(-0.5);
      assertThat(expert.up().values().get(2, 39)).isEqualTo(6);
      assertThat(expert.up().scales().orElseThrow().get(2, 1)).isEqualTo(8);
    }
  }

  @Test
  void quantisedExpertsAreNamedAsWhatTheyAre() {
    for (Map.Entry<String, String> e :
        Map.of(
                "experts.gate_up_proj_blocks", "MXFP4",
                "experts.0.up_proj.qweight", "GPTQ or AWQ",
                "experts.0.up_proj.weight_packed", "compressed-tensors",
                "experts.0.up_proj.weight_scale_inv", "FP8")
            .entrySet()) {
      TinyCheckpoint t = TinyCheckpoint.qwen3();
      if (!e.getKey().endsWith("_inv")) {
        t.tensors.keySet().removeIf(n -> n.contains(".experts."));
      }
      t.put("model.layers.1.mlp." + e.getKey(), DType.U8, 4, 4);
      t.with("quantization_config", Map.of("quant_method", "some"));
      Path model = t.writeModel(dir.resolve(e.getValue().substring(0, 3)));
      assertThatThrownBy(() -> MoeCheckpoint.open(model))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining(e.getValue())
          .hasMessageContaining("'some'")
          .hasMessageContaining("bf16");
    }
    TinyCheckpoint fp8 = TinyCheckpoint.qwen3();
    fp8.tensors.replaceAll(
        (n, t) -> n.contains(".experts.") ? TinyCheckpoint.random(n, DType.I8, t.shape()) : t);
    Path model = fp8.writeModel(dir.resolve("fp8"));
    assertThatThrownBy(() -> MoeCheckpoint.open(model)).hasMessageContaining("dequantised");
  }

  @Test
  void laterLayersAreLeftOutAndSaid() {
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("num_hidden_layers", 2);
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.layers()).containsExactly(1);
      assertThat(c.notes()).anyMatch(n -> n.contains("layer 2 is left out"));
    }
  }

  @Test
  void expertsWhereTheConfigSaysDenseAreUsedAndSaid() {
    TinyCheckpoint t = TinyCheckpoint.qwen3().with("mlp_only_layers", List.of(0, 2));
    try (MoeCheckpoint c = MoeCheckpoint.open(t.writeModel(dir))) {
      assertThat(c.layers()).containsExactly(1, 2);
      assertThat(c.notes()).anyMatch(n -> n.contains("[2]"));
    }
  }

  @Test
  void shardsAreToldToTheListener() throws Exception {
    StringBuilder seen = new StringBuilder();
    LoadProgress progress =
        (what, done, total) -> seen.append(done).append('/').append(total).append(' ');
    Path model = Fixtures.model("qwen3_moe");
    long files;
    try (var list = Files.list(model)) {
      files = list.filter(p -> p.toString().endsWith(".safetensors")).count();
    }
    MoeCheckpoint.open(model, CheckpointOptions.DEFAULT.withProgress(progress)).close();
    assertThat(seen.toString()).startsWith("1/" + files).endsWith(files + "/" + files + " ");
  }

  @Test
  void layoutsCheckTheirTemplates() {
    for (String bad : List.of("layers.mlp", "{L}.mlp", "layers{L}.mlp", "a.{L}.{L}.b", ".a.{L}")) {
      assertThatThrownBy(() -> new BlockPath(bad))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining(bad);
    }
    assertThatThrownBy(() -> CheckpointLayout.builder("x").build())
        .isInstanceOf(IllegalStateException.class);
    BlockPath path = new BlockPath("layers.{L}.mlp");
    assertThat(path.blockName()).isEqualTo("mlp");
    assertThat(path.match("xlayers.1.mlp.a")).isEmpty();
    assertThat(path.match("layers.01.mlp.a")).isEmpty();
    assertThat(path.match("layers.9999999.mlp.a")).isEmpty();
    assertThat(path.match("layers.1.mlpx.a")).isEmpty();
    assertThat(path.match("a.layers.b.layers.12.mlp.c.d"))
        .hasValue(new BlockPath.Match("a.layers.b.", 12, "c.d"));
  }
}
