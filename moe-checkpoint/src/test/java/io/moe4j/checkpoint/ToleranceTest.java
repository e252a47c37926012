package io.moe4j.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assertions.assertTimeoutPreemptively;

import com.fasterxml.jackson.databind.ObjectMapper;
import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.AdapterReport.Disposition;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Predicate;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Strict about what a block needs, tolerant of everything else; and it says what it met. */
@NullUnmarked // a missing value fails the test where it is used
class ToleranceTest extends AdapterTestBase {
  private static final String UP = "model.layers.1.mlp.experts.0.up_proj.weight";
  private static final String EMBED = "model.embed_tokens.weight";

  private void shard(String file, TinyCheckpoint t, Predicate<String> which) {
    Map<String, Tensor> part = new LinkedHashMap<>();
    t.tensors.forEach((n, x) -> {
      if (which.test(n)) {
        part.put(n, x);
      }
    });
    SafetensorsWriter.write(dir.resolve(file), part, Map.of());
  }

  private TinyCheckpoint sharded(Map<String, String> changes) throws Exception {
    TinyCheckpoint t = TinyCheckpoint.qwen3();
    Map<String, String> map = new LinkedHashMap<>();
    t.tensors.keySet().forEach(n -> map.put(n, n.contains("layers.2.") ? B : A));
    map.putAll(changes);
    ObjectMapper json = new ObjectMapper();
    Files.writeString(dir.resolve("config.json"), json.writeValueAsString(t.config));
    Files.writeString(
        dir.resolve("model.safetensors.index.json"),
        json.writeValueAsString(Map.of("weight_map", map)));
    shard(A, t, n -> !n.contains("layers.2."));
    shard(B, t, n -> n.contains("layers.2."));
    return t;
  }

  private static final String A = "a.safetensors";
  private static final String B = "b.safetensors";

  private MoeCheckpoint open() {
    return MoeCheckpoint.open(dir);
  }

  @Test
  void theIndexDecidesBetweenTwoCopies() throws Exception {
    TinyCheckpoint t = sharded(Map.of(UP, "overlay.safetensors"));
    TinyCheckpoint overlay = new TinyCheckpoint();
    overlay.tensors.put(UP, TinyCheckpoint.random("other values", DType.BF16, I, H));
    shard("overlay.safetensors", overlay, n -> true);
    try (MoeCheckpoint model = open()) {
      assertThat(model.weights(1).experts().expert(0).up().plain().get(3, 5))
          .isEqualTo(overlay.tensors.get(UP).get(3, 5))
          .isNotEqualTo(t.tensors.get(UP).get(3, 5));
      assertThat(model.notes()).anyMatch(n -> n.contains("the index decides"));
    }
  }

  @Test
  void aStaleIndexMattersWhereABlockIsConcerned() throws Exception {
    sharded(Map.of("lm_head.weight", B, "model.layers.0.mlp.up_proj.weight", "c.safetensors"));
    try (MoeCheckpoint model = open()) {
      assertThat(model.notes()).anyMatch(n -> n.contains("2 tensors that are not needed"));
    }
    for (Map<String, String> stale :
        List.of(
            Map.of(UP, B),
            Map.of(UP, "c.safetensors"),
            Map.of("model.layers.2.mlp.gate.bias", A),
            Map.of("_orig_mod.model.layers.2.mlp.gate.bias", A))) {
      sharded(stale);
      assertThatThrownBy(this::open)
          .as("%s", stale)
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining(stale.keySet().iterator().next())
          .hasMessageContaining("model.safetensors.index.json");
    }
  }

  @Test
  void aMissingShardMattersWhereABlockIsConcerned() throws Exception {
    sharded(Map.of());
    Files.delete(dir.resolve(B));
    assertThatThrownBy(this::open)
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("b.safetensors")
        .hasMessageContaining("does not exist");
    sharded(Map.of(EMBED, "c.safetensors"));
    open().close();
  }

  @Test
  void copiesInTwoFilesMatterWhereABlockIsConcerned() throws Exception {
    TinyCheckpoint t = sharded(Map.of());
    Files.delete(dir.resolve("model.safetensors.index.json"));
    shard("c.safetensors", t, n -> n.equals(EMBED));
    try (MoeCheckpoint model = open()) {
      assertThat(model.notes()).anyMatch(n -> n.contains(EMBED) && n.contains("one shard only"));
      assertThat(model.tensors()).doesNotContainKey(EMBED);
    }
    shard("c.safetensors", t, n -> n.equals(UP));
    assertThatThrownBy(this::open).hasMessageContaining(UP).hasMessageContaining("one shard only");
  }

  /** Looked at once each: twice for every pair would take minutes. */
  @Test
  void manyShards() {
    Map<String, Path> names = new TreeMap<>();
    for (int i = 1; i <= 30_000; i++) {
      String name = "m-%05d-of-30000.safetensors".formatted(i);
      names.put(name, dir.resolve(name));
    }
    assertTimeoutPreemptively(
        Duration.ofSeconds(30), () -> ShardedTensors.requireComplete(dir, names));
    names.remove("m-02999-of-30000.safetensors");
    assertThatThrownBy(() -> ShardedTensors.requireComplete(dir, names))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("m-02999-of-30000.safetensors: a shard is missing");
  }

  private void empties(String file, int first, int count) throws Exception {
    StringBuilder all = new StringBuilder("{");
    for (int i = first; i < first + count; i++) {
      all.append(i == first ? "\"" : ",\"")
          .append(i)
          .append("\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}");
    }
    byte[] header = all.append('}').toString().getBytes(StandardCharsets.UTF_8);
    Files.write(
        dir.resolve(file),
        ByteBuffer.allocate(8 + header.length)
            .order(ByteOrder.LITTLE_ENDIAN)
            .putLong(header.length)
            .put(header)
            .array());
  }

  /**
   * Names take time and heap, too: tensors without bytes may not be many, in one file or in all.
   */
  @Test
  void manyTensorsWithoutBytes() throws Exception {
    empties("a.safetensors", 0, 150_001);
    assertThatThrownBy(() -> SafetensorsFile.open(dir.resolve("a.safetensors")))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("more than 150000 tensors");
    empties("model-00001-of-00002.safetensors", 0, 80_000);
    empties("model-00002-of-00002.safetensors", 80_000, 80_000);
    Files.delete(dir.resolve("a.safetensors"));
    Files.writeString(
        dir.resolve("config.json"),
        new ObjectMapper().writeValueAsString(TinyCheckpoint.qwen3().config));
    assertThatThrownBy(this::open)
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("model-00002-of-00002.safetensors")
        .hasMessageContaining("160000 tensors");
  }

  /** A file with one more tensor, of a type that only the header knows. */
  private static void append(Path file, String name, String dtype, String shape, int bytes)
      throws Exception {
    byte[] old = Files.readAllBytes(file);
    int length = Math.toIntExact(ByteBuffer.wrap(old).order(ByteOrder.LITTLE_ENDIAN).getLong());
    String header = new String(old, 8, length, StandardCharsets.UTF_8).strip();
    int data = old.length - 8 - length;
    String more =
        "%s,\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%d,%d]}}"
            .formatted(
                header.substring(0, header.length() - 1), name, dtype, shape, data, data + bytes);
    byte[] json = more.getBytes(StandardCharsets.UTF_8);
    Files.write(
        file,
        ByteBuffer.allocate(8 + json.length + data + bytes)
            .order(ByteOrder.LITTLE_ENDIAN)
            .putLong(json.length)
            .put(json)
            .put(old, 8 + length, data)
            .array());
  }

  @ParameterizedTest
  @CsvSource({
    "C64, '[4]', 32",
    "F6_E2M3, '[4, 2]', 6",
    "F6_E3M2, '[4]', 3",
    "F8_E4M3FNUZ, '[5]', 5",
    "F8_E5M2FNUZ, '[5]', 5",
    "F99_OF_TOMORROW, '[3]', 7"
  })
  void typesThatCannotBeReadMatterWhereABlockIsConcerned(String dtype, String shape, int bytes)
      throws Exception {
    TinyCheckpoint.qwen3().writeModel(dir);
    Path file = dir.resolve("model.safetensors");
    append(file, "model.visual.freqs", dtype, shape, bytes);
    append(file, "model.layers.0.mlp.odd", dtype, shape, bytes);
    try (MoeCheckpoint model = open()) {
      assertThat(model.notes()).anyMatch(n -> n.contains(dtype + shape.replace(" ", " ")));
    }
    append(file, "model.layers.1.mlp.experts.0.odd", dtype, shape, bytes);
    assertThatThrownBy(this::open)
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("experts.0.odd")
        .hasMessageContaining(dtype);
    try (SafetensorsFile opened = SafetensorsFile.open(file)) {
      assertThat(opened.opaque()).containsKey("model.visual.freqs").hasSize(3);
      assertThatThrownBy(() -> opened.tensor("model.visual.freqs")).hasMessageContaining(dtype);
    }
  }

  @Test
  void sizesOfKnownTypesAreChecked() throws Exception {
    TinyCheckpoint.qwen3().writeModel(dir);
    Path file = dir.resolve("model.safetensors");
    append(file, "x", "C64", "[4]", 31);
    assertThatThrownBy(() -> SafetensorsFile.open(file)).hasMessageContaining("takes 32 bytes");
  }

  @Test
  void typesThatCannotBeReadInAdapters() throws Exception {
    TinyCheckpoint t = adapter(2, 4).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    t.writeAdapter(dir);
    Path file = dir.resolve("adapter_model.safetensors");
    append(
        file, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", "C64", "[4]", 32);
    PeftAdapter loaded = PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.DEFAULT);
    assertThat(loaded.report().counts())
        .containsEntry(Disposition.APPLIED, 2)
        .containsEntry(Disposition.SKIPPED, 1);
    append(file, "base_model.model." + EXPERTS + ".1.up_proj.lora_A.weight", "C64", "[4]", 32);
    assertThatThrownBy(() -> PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.LENIENT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("C64[4]");
  }

  private void config(String text) throws Exception {
    TinyCheckpoint.qwen3().writeModel(dir);
    String json = Files.readString(dir.resolve("config.json"));
    Files.writeString(
        dir.resolve("config.json"), json.substring(0, json.lastIndexOf('}')) + "," + text + "}");
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "\"vocab_size\":8,\"vocab_size\":8",
        "\"vocab_size\":8,\"vocab_size\":9",
        "\"hidden_size\":16",
        "\"mlp_only_layers\":[0]",
        "\"rope\":{\"a\":1},\"rope\":{\"a\":1}",
        "\"rope\":{\"a\":1},\"rope\":{\"a\":2}",
        "\"rope\":{\"a\":1,\"a\":2}",
        "\"x\":NaN,\"x\":-Infinity"
      })
  void keysThatAreGivenTwiceAndDoNotMatter(String text) throws Exception {
    config(text);
    open().close();
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "\"hidden_size\":17",
        "\"hidden_size\":\"16\"",
        "\"hidden_size\":null",
        "\"hidden_size\":17,\"hidden_size\":16",
        "\"mlp_only_layers\":[1]",
        "\"norm_topk_prob\":false",
        "\"model_type\":\"mixtral\"",
        "\"text_config\":{},\"text_config\":{\"a\":1}"
      })
  void keysThatAreReadMayNotHaveTwoValues(String text) throws Exception {
    config(text);
    assertThatThrownBy(this::open)
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("given twice");
  }

  @Test
  void keysOfAdaptersThatAreGivenTwice() throws Exception {
    String start = "{\"r\":2,\"lora_alpha\":4,";
    TinyCheckpoint t = adapter(2, 4).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    t.writeAdapter(dir);
    for (String fine : List.of("\"r\":2}", "\"x\":1,\"x\":2}", "\"lora_alpha\":4}")) {
      Files.writeString(dir.resolve("adapter_config.json"), start + fine);
      PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.DEFAULT);
    }
    for (String doubtful :
        List.of(
            "\"r\":3}",
            "\"lora_alpha\":8}",
            "\"use_rslora\":true,\"use_rslora\":false}",
            "\"use_dora\":true,\"use_dora\":false}",
            "\"rank_pattern\":{\"a\":1,\"a\":2}}",
            "\"rank_pattern\":{},\"rank_pattern\":{\"a\":2}}",
            "\"target_parameters\":[],\"target_parameters\":[\"a\"]}",
            "\"init_lora_weights\":true,\"init_lora_weights\":\"pissa\"}",
            "\"lora_B_layout\":\"rank_major\",\"lora_B_layout\":\"grouped_by_expert\"}")) {
      Files.writeString(dir.resolve("adapter_config.json"), start + doubtful);
      assertThatThrownBy(() -> PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.DEFAULT))
          .as(doubtful)
          .isInstanceOfAny(CheckpointException.class, AdapterException.class);
    }
  }

  @Test
  void adaptersInShards() throws Exception {
    TinyCheckpoint t =
        adapter(2, 4)
            .pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2))
            .pair("model.layers.2.mlp.experts.1.up_proj", DType.F32, d(2, H), d(I, 2));
    t.writeAdapter(dir);
    Files.delete(dir.resolve("adapter_model.safetensors"));
    shard("adapter_model-00001-of-00002.safetensors", t, n -> n.contains("layers.1."));
    assertThatThrownBy(() -> PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("adapter_model-00002-of-00002.safetensors");
    shard("adapter_model-00002-of-00002.safetensors", t, n -> n.contains("layers.2."));
    shard("other.safetensors", TinyCheckpoint.qwen3(), n -> true);
    // Without an index the numbers say what belongs together.
    assertThat(PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.STRICT).adapter().layers())
        .containsOnlyKeys(1, 2);
    Map<String, String> map = new LinkedHashMap<>();
    t.tensors.keySet().forEach(n -> map.put(n, "adapter_model-00001-of-00002.safetensors"));
    Files.writeString(
        dir.resolve("adapter_model.safetensors.index.json"),
        new ObjectMapper().writeValueAsString(Map.of("weight_map", map)));
    // A factor of an expert that is not where the index says is no attention.
    assertThatThrownBy(() -> PeftAdapter.load(dir, "x", qwen3(), AdapterPolicy.LENIENT))
        .isInstanceOf(AdapterRefusedException.class)
        .hasMessageContaining("no shard");
  }

  @Test
  void filesOneFolderDown() throws Exception {
    TinyCheckpoint t = adapter(2, 4).pair(EXPERTS + ".0.up_proj", DType.F32, d(2, H), d(I, 2));
    t.writeAdapter(dir.resolve("checkpoint-100").resolve("default"));
    assertThatThrownBy(() ->
            PeftAdapter.load(dir.resolve("checkpoint-100"), "x", qwen3(), AdapterPolicy.DEFAULT))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("one folder down")
        .hasMessageContaining("checkpoint-100/default");
    TinyCheckpoint.qwen3().writeModel(dir.resolve("snapshots").resolve("abc"));
    assertThatThrownBy(() -> MoeCheckpoint.open(dir.resolve("snapshots")))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("one folder down")
        .hasMessageContaining("snapshots/abc");
    assertThatThrownBy(() -> MoeCheckpoint.open(dir.resolve("checkpoint-100").resolve("default")))
        .hasMessageContaining("config.json does not exist")
        .hasMessageNotContaining("one folder down");
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "version https://git-lfs.github.com/spec/v1\\noid sha256:00\\nsize 1\\n|Git LFS pointer",
        "<!DOCTYPE html><html>|web page",
        "<html lang=en>|web page",
        "PK\u0003\u0004zipzipzip|zip archive",
        "GGUF\u0003\u0000\u0000\u0000\u0000|GGUF"
      })
  void filesThatAreSomethingElse(String start, String kind) throws Exception {
    byte[] bytes = start.replace("\\n", "\n").getBytes(StandardCharsets.ISO_8859_1);
    TinyCheckpoint.qwen3().writeModel(dir);
    for (String name :
        List.of("model.safetensors", "config.json", "model.safetensors.index.json")) {
      Path other = Files.createDirectories(dir.resolve("of " + name));
      TinyCheckpoint.qwen3().writeModel(other);
      if (name.contains("index")) {
        Files.delete(other.resolve("model.safetensors"));
      }
      Files.write(other.resolve(name), bytes);
      assertThatThrownBy(() -> MoeCheckpoint.open(other))
          .as(name)
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining(name)
          .hasMessageContaining(kind);
    }
    for (String name : List.of("adapter_model.safetensors", "adapter_config.json")) {
      Path other = Files.createDirectories(dir.resolve("of " + name));
      adapter(2, 4).writeAdapter(other);
      Files.write(other.resolve(name), bytes);
      assertThatThrownBy(() -> PeftAdapter.load(other, "x", qwen3(), AdapterPolicy.DEFAULT))
          .as(name)
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining(name)
          .hasMessageContaining(kind);
    }
  }

  /** A header whose length spells the mark of a pickle is a header. */
  @Test
  void lengthsThatLookLikeOtherFormats() throws Exception {
    for (int length : new int[] {0x280, 0x480, 0x8b1f}) {
      String json = "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";
      byte[] header = (json + " ".repeat(length - json.length())).getBytes(StandardCharsets.UTF_8);
      Path file = dir.resolve("x.safetensors");
      Files.write(file, HostileCases.safetensors(length, header, 4));
      try (SafetensorsFile opened = SafetensorsFile.open(file)) {
        assertThat(opened.tensors()).containsOnlyKeys("a");
      }
    }
  }

  @ParameterizedTest
  @CsvSource({
    "W_q, hqq",
    "weight._data, quanto",
    "codes, aqlm",
    "trellis, exl3",
    "centroids.weight, vptq",
    "q_weight, exl2",
    "SCB, bitsandbytes",
    "something_nobody_knows, the_method_of_tomorrow"
  })
  void quantisedExpertsAreNamedByTheirMethod(String ending, String method) {
    for (boolean nested : new boolean[] {false, true}) {
      TinyCheckpoint t = TinyCheckpoint.qwen3();
      Map<String, Tensor> plain = Map.copyOf(t.tensors);
      plain.forEach((name, tensor) -> {
        if (name.contains("experts.")) {
          t.drop(name);
          t.put(name.replace("_proj.weight", "_proj." + ending), DType.U8, 4, 4);
        }
      });
      TinyCheckpoint written = t;
      if (nested) {
        written = new TinyCheckpoint();
        written.tensors.putAll(t.tensors);
        written.with("model_type", "some_vl_moe").with("text_config", t.config);
      }
      written.with("quantization_config", Map.of("quant_method", method));
      Path at = written.writeModel(dir);
      assertThatThrownBy(() -> MoeCheckpoint.open(at))
          .isInstanceOf(CheckpointException.class)
          .hasMessageContaining("quantised")
          .hasMessageContaining("quant_method '" + method + "'")
          .hasMessageNotContaining("PerExpert");
    }
  }

  /** Those that are read, with a config and tensors that say too little. */
  @ParameterizedTest
  @CsvSource({
    "qweight, gptq, lacks 'bits'",
    "qweight, awq, lacks 'bits' or 'w_bit'",
    "weight_packed, compressed-tensors, lacks 'config_groups'",
    "weight_scale_inv, fp8, 'experts.0.gate_proj.weight' is missing",
    "qweight, fp8, 'experts.0.gate_proj.qweight' is of GPTQ or AWQ",
    "qweight, hqq, which is not read here"
  })
  void quantisedExpertsNeedTheirConfig(String ending, String method, String wrong) {
    TinyCheckpoint t = TinyCheckpoint.qwen3();
    Map.copyOf(t.tensors)
        .forEach((name, tensor) -> {
          if (name.contains("experts.")) {
            t.drop(name);
            t.put(name.replace("_proj.weight", "_proj." + ending), DType.I32, 4, 4);
          }
        });
    t.with("quantization_config", Map.of("quant_method", method));
    Path at = t.writeModel(dir);
    assertThatThrownBy(() -> MoeCheckpoint.open(at))
        .isInstanceOf(CheckpointException.class)
        .hasMessageContaining("quant_method '" + method + "'")
        .hasMessageContaining(wrong);
  }

  @Test
  void otherSignsOfQuantisation() throws Exception {
    TinyCheckpoint none = TinyCheckpoint.qwen3();
    none.tensors.keySet().removeIf(n -> n.contains("experts."));
    assertThatThrownBy(() -> MoeCheckpoint.open(none.writeModel(dir)))
        .hasMessageContaining("holds no routed experts")
        .hasMessageContaining("experts.{E}.up_proj.weight or experts.gate_up_proj")
        .hasMessageNotContaining("Optional");
    none.with("quantization", Map.of("bits", 4));
    assertThatThrownBy(() -> MoeCheckpoint.open(none.writeModel(dir))).hasMessageContaining("MLX");
    none.without("quantization").with("quantization_config", Map.of("bits", 4));
    assertThatThrownBy(() -> MoeCheckpoint.open(none.writeModel(dir)))
        .hasMessageContaining("without quant_method");
    none.without("quantization_config")
        .with("compression_config", Map.of("quant_method", "sparseml"));
    assertThatThrownBy(() -> MoeCheckpoint.open(none.writeModel(dir)))
        .hasMessageContaining("sparseml");
    none.without("compression_config").writeModel(dir);
    Files.writeString(dir.resolve("hf_quant_config.json"), "{}");
    assertThatThrownBy(this::open).hasMessageContaining("hf_quant_config.json");
    TinyCheckpoint bytes =
        TinyCheckpoint.qwen3().with("quantization_config", Map.of("quant_method", "torchao"));
    bytes.tensors.replaceAll(
        (n, x) -> n.contains("experts.") ? TinyCheckpoint.random(n, DType.I8, x.shape()) : x);
    assertThatThrownBy(() -> MoeCheckpoint.open(bytes.writeModel(dir)))
        .hasMessageContaining("'experts.0.gate_proj.weight' is I8[12, 16]")
        .hasMessageContaining("torchao");
    // A dequantised copy with a leftover config is what its tensors are.
    MoeCheckpoint.open(
            TinyCheckpoint.qwen3()
                .with("quantization_config", Map.of("quant_method", "fp8"))
                .writeModel(dir))
        .close();
  }

  @ParameterizedTest
  @CsvSource({
    "DeepseekV2ForCausalLM, deepseek_v2",
    "DeepseekV3ForCausalLM, deepseek_v3",
    "Qwen3MoeForCausalLM, qwen3_moe",
    "Qwen2MoeForCausalLM, qwen2_moe",
    "MixtralForCausalLM, mixtral",
    "PhimoeForCausalLM, phimoe",
    "PhiMoEForCausalLM, phimoe",
    "GptOssForCausalLM, gpt_oss",
    "Llama4ForConditionalGeneration, llama4_text",
    "OlmoeForCausalLM, olmoe",
    "Glm4MoeForCausalLM, glm4_moe"
  })
  void familiesByTheirArchitecture(String architecture, String family) {
    ModelConfig top =
        config(
            Map.of(
                "model_type",
                "some_wrapper",
                "language_config",
                Map.of("architectures", List.of("Unknown", architecture), "hidden_size", 4)));
    LanguageModel found = LanguageModel.find(top, KnownLayouts.all());
    assertThat(found.layout().modelType()).isEqualTo(family);
    assertThat(found.config().requireInt("hidden_size")).isEqualTo(4);
    assertThat(
            LanguageModel.find(
                    config(Map.of("architectures", List.of(architecture))), KnownLayouts.all())
                .layout()
                .modelType())
        .isEqualTo(family);
  }

  @Test
  void aTypeThatIsGivenIsNotGuessedAt() {
    assertThatThrownBy(() ->
            LanguageModel.find(
                config(
                    Map.of("model_type", "other", "architectures", List.of("MixtralForCausalLM"))),
                KnownLayouts.all()))
        .hasMessageContaining("'other'");
    ModelConfig omni =
        config(
            Map.of(
                "model_type",
                "some_omni",
                "thinker_config",
                Map.of("text_config", Map.of("model_type", "qwen3_moe", "hidden_size", 4))));
    assertThat(LanguageModel.find(omni, KnownLayouts.all()).layout().modelType())
        .isEqualTo("qwen3_moe");
  }

  /** Where wrappers keep the language model under a key of their own, its type tells. */
  @ParameterizedTest
  @ValueSource(strings = {"text_model_config", "decoder", "language_model", "lm_config", "llm"})
  void aPartOfAKnownTypeUnderAnyKey(String key) {
    Map<String, Object> inner = Map.of("model_type", "qwen3_moe", "hidden_size", 4);
    Map<String, Object> outer =
        Map.of(
            "model_type",
            "some_wrapper",
            key,
            inner,
            "talker_config",
            Map.of("model_type", "mixtral"),
            "vision_config",
            Map.of("model_type", "qwen2_moe"),
            "draft_model",
            Map.of("model_type", "olmoe"));
    LanguageModel found = LanguageModel.find(config(outer), KnownLayouts.all());
    assertThat(found.layout().modelType()).isEqualTo("qwen3_moe");
    assertThat(found.config().requireInt("hidden_size")).isEqualTo(4);
    assertThatThrownBy(() ->
            LanguageModel.find(
                config(
                    Map.of(
                        "model_type",
                        "some_wrapper",
                        key,
                        inner,
                        "second",
                        Map.of("model_type", "mixtral"))),
                KnownLayouts.all()))
        .hasMessageContaining("'some_wrapper'")
        .hasMessageContaining("'qwen3_moe' in " + key)
        .hasMessageContaining("'mixtral' in second");
    assertThatThrownBy(() ->
            LanguageModel.find(
                config(Map.of("model_type", "outer", key, Map.of("model_type", "inner_moe"))),
                KnownLayouts.all()))
        .hasMessageContaining("'inner_moe' in " + key)
        .hasMessageContaining("the last one");
  }

  @Test
  void numbersGivenAsStringsAreCalledSo() {
    assertThatThrownBy(() -> config(Map.of("hidden_size", "16")).requireInt("hidden_size"))
        .hasMessageContaining("'hidden_size' is the string '16', must be an integer");
    assertThatThrownBy(() -> config(Map.of("tie", "true")).optionalBoolean("tie", false))
        .hasMessageContaining("the string 'true'");
  }

  private ModelConfig config(Map<String, Object> values) {
    try {
      Path file = dir.resolve("c.json");
      Files.writeString(file, new ObjectMapper().writeValueAsString(values));
      return new ModelConfig("c.json", StrictJson.readObject(file, 1 << 20));
    } catch (java.io.IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }
}
