package io.moe4j.checkpoint;

import io.moe4j.api.tensor.DType;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import org.jspecify.annotations.NullUnmarked;

/** Malformed config.json files, shard indices and model tensors. */
@NullUnmarked
final class HostileModels {
  private static final int H = TinyCheckpoint.H;
  private static final int I = TinyCheckpoint.I;
  private static final int E = TinyCheckpoint.E;

  private final HostileCases cases;

  HostileModels(HostileCases cases) {
    this.cases = cases;
  }

  void add() {
    configs();
    indices();
    layouts();
  }

  // ---- config.json ----

  private void config(String name, Consumer<TinyCheckpoint> bend) {
    cases.add(
        "config: " + name,
        dir -> {
          TinyCheckpoint t = TinyCheckpoint.qwen3();
          bend.accept(t);
          MoeCheckpoint.open(t.writeModel(dir)).close();
        });
  }

  private void configText(String name, String text) {
    configBytes(name, text.getBytes(StandardCharsets.UTF_8));
  }

  private void configBytes(String name, byte[] bytes) {
    cases.add(
        "config: " + name,
        dir -> {
          TinyCheckpoint.qwen3().writeModel(dir);
          Files.write(dir.resolve("config.json"), bytes);
          MoeCheckpoint.open(dir).close();
        });
  }

  private void configs() {
    configText("empty", "");
    configText("array", "[]");
    configText("null", "null");
    configText("text", "not json");
    configText("cut", "{\"model_type\":\"qwen3");
    configText("trailing", "{\"model_type\":\"qwen3_moe\"} {}");
    configText("duplicate key", "{\"model_type\":\"qwen3_moe\",\"model_type\":\"mixtral\"}");
    configText("deep", "{\"a\":" + "[".repeat(100_000));
    configText("deep objects", "{\"a\":".repeat(100_000));
    configText("many tokens", "{\"a\":[" + "0,".repeat(2_100_000) + "0]}");
    configText("huge string", "{\"a\":\"" + "x".repeat(5 << 20) + "\"}");
    configText("over the size limit", "{\"a\":\"" + "x".repeat(9 << 20) + "\"}");
    configText("huge number", "{\"a\":" + "1".repeat(10_000) + "}");
    configText("NaN", "{\"model_type\":\"qwen3_moe\",\"x\":NaN}");
    configText("no model_type", "{}");
    configText("nested unknown", "{\"model_type\":\"x\",\"text_config\":{\"model_type\":\"y\"}}");
    configText("text_config is a list", "{\"model_type\":\"x\",\"text_config\":[]}");
    configBytes("not UTF-8", new byte[] {'{', '"', (byte) 0xff, '"', ':', '1', '}'});
    configBytes("UTF-16", "{\"model_type\":\"qwen3_moe\"}".getBytes(StandardCharsets.UTF_16));
    cases.add(
        "config: missing",
        dir -> {
          TinyCheckpoint.qwen3().writeModel(dir);
          Files.delete(dir.resolve("config.json"));
          MoeCheckpoint.open(dir).close();
        });
    cases.add(
        "config: is a directory",
        dir -> {
          TinyCheckpoint.qwen3().writeModel(dir);
          Files.delete(dir.resolve("config.json"));
          Files.createDirectory(dir.resolve("config.json"));
          MoeCheckpoint.open(dir).close();
        });
    for (String key :
        List.of(
            "hidden_size",
            "moe_intermediate_size",
            "num_experts",
            "num_experts_per_tok",
            "num_hidden_layers")) {
      config("no " + key, t -> t.without(key));
      for (Object value :
          new Object[] {0, -1, "16", 16.5, true, List.of(16), Map.of(), 1L << 40, 1e300}) {
        config(key + " = " + value, t -> t.with(key, value));
      }
    }
    for (String key :
        List.of("hidden_size", "moe_intermediate_size", "num_experts", "num_experts_per_tok")) {
      config(key + " too large", t -> t.with(key, Integer.MAX_VALUE));
      config(key + " off by one", t -> t.with(key, 5));
    }
    config("num_hidden_layers too large", t -> t.with("num_hidden_layers", Integer.MAX_VALUE));
    config("more layers than the files hold", t -> t.with("num_hidden_layers", 4));
    config("model_type is a number", t -> t.with("model_type", 7));
    config("model_type unknown", t -> t.with("model_type", "gpt2"));
    config("model_type endless", t -> t.with("model_type", "x".repeat(100_000)));
    config(
        "model_type of another family",
        t -> t.with("model_type", "mixtral").with("intermediate_size", I));
    config("hidden_act unknown", t -> t.with("hidden_act", "softplus"));
    config("hidden_act is a list", t -> t.with("hidden_act", List.of("silu")));
    config("hidden_act without gate", t -> t.with("hidden_act", "relu2"));
    config("norm_topk_prob is a string", t -> t.with("norm_topk_prob", "yes"));
    config("mlp_only_layers is a number", t -> t.with("mlp_only_layers", 0));
    config("mlp_only_layers holds strings", t -> t.with("mlp_only_layers", List.of("0")));
    config(
        "mlp_only_layers endless",
        t -> t.with("mlp_only_layers", java.util.Collections.nCopies(20_000, 0)));
    config("decoder_sparse_step negative", t -> t.with("decoder_sparse_step", -2));
    config("mlp_layer_types is a string", t -> t.with("mlp_layer_types", "sparse"));
    for (Map.Entry<String, Object> e :
        Map.<String, Object>of(
                "n_group",
                3,
                "topk_group",
                9,
                "scoring_func",
                "softmax",
                "routed_scaling_factor",
                "x")
            .entrySet()) {
      config(
          "deepseek " + e.getKey(),
          t ->
              t.with("model_type", "deepseek_v3")
                  .with("first_k_dense_replace", 1)
                  .with("n_group", 2)
                  .with("topk_group", 1)
                  .with(e.getKey(), e.getValue()));
    }
  }

  // ---- shards ----

  private void index(String name, Object index, Map<String, List<String>> shards) {
    cases.add(
        "index: " + name,
        dir -> {
          TinyCheckpoint t = TinyCheckpoint.qwen3();
          t.writeModel(dir);
          Files.delete(dir.resolve("model.safetensors"));
          for (Map.Entry<String, List<String>> shard : shards.entrySet()) {
            TinyCheckpoint part = new TinyCheckpoint();
            t.tensors.forEach((n, tensor) -> {
              if (shard.getValue().stream().anyMatch(n::contains)) {
                part.tensors.put(n, tensor);
              }
            });
            SafetensorsWriter.write(dir.resolve(shard.getKey()), part.tensors, Map.of());
          }
          if (index != null) {
            Files.writeString(
                dir.resolve("model.safetensors.index.json"),
                index instanceof String s
                    ? s
                    : new com.fasterxml.jackson.databind.ObjectMapper().writeValueAsString(index));
          }
          MoeCheckpoint.open(dir).close();
        });
  }

  private static Map<String, Object> weightMap(String otherTensor, Object otherFile) {
    Map<String, Object> map = new LinkedHashMap<>();
    TinyCheckpoint.qwen3()
        .tensors
        .keySet()
        .forEach(n -> map.put(n, n.contains("layers.2.") ? "b.safetensors" : "a.safetensors"));
    if (otherTensor != null) {
      map.put(otherTensor, otherFile);
    }
    return Map.of("metadata", Map.of("total_size", 1), "weight_map", map);
  }

  private void indices() {
    Map<String, List<String>> good =
        Map.of(
            "a.safetensors", List.of("embed", "layers.0.", "layers.1."),
            "b.safetensors", List.of("layers.2."));
    index("nothing at all", null, Map.of());
    index("not json", "x", good);
    index("array", "[]", good);
    index("no weight_map", "{}", good);
    index("weight_map is a list", "{\"weight_map\":[]}", good);
    index("weight_map is empty", "{\"weight_map\":{}}", good);
    index("file is a number", weightMap("x", 1), good);
    index("file is null", weightMap("x", null), good);
    index(
        "duplicate tensor",
        "{\"weight_map\":{\"a\":\"a.safetensors\",\"a\":\"b.safetensors\"}}",
        good);
    for (String file :
        List.of(
            "../a.safetensors",
            "../../etc/passwd",
            "/etc/passwd",
            "/tmp/a.safetensors",
            "sub/a.safetensors",
            "..\\a.safetensors",
            "C:\\a.safetensors",
            "C:a.safetensors",
            "",
            ".safetensors",
            "..safetensors",
            "a.bin",
            "a.safetensors/..",
            "a\u0000.safetensors",
            "x".repeat(300) + ".safetensors",
            "a.safetensors\n",
            "file:///etc/passwd")) {
      index("file '" + StrictJson.shorten(file) + "'", weightMap("other", file), good);
    }
    String more = "model.layers.2.mlp.gate.bias";
    index("a block's tensor in no shard", weightMap(more, "a.safetensors"), good);
    index("a block's tensor in a file that is not there", weightMap(more, "c.safetensors"), good);
    index(
        "tensor in the wrong shard",
        weightMap("model.layers.2.mlp.gate.weight", "a.safetensors"),
        good);
    index(
        "a shard is missing",
        weightMap(null, null),
        Map.of("a.safetensors", List.of("embed", "layers.0.", "layers.1.")));
    index(
        "no index, a tensor in two files",
        null,
        Map.of("a.safetensors", List.of("layers."), "b.safetensors", List.of("layers.2.")));
    index(
        "no index, a numbered shard is missing",
        null,
        Map.of(
            "model-00001-of-00003.safetensors",
            List.of("layers.1."),
            "model-00003-of-00003.safetensors",
            List.of("layers.2.")));
    index(
        "no index, shard count lies",
        null,
        Map.of("model-00001-of-99999.safetensors", List.of("layers.")));
  }

  // ---- tensors of a model ----

  private void layout(String name, Consumer<TinyCheckpoint> bend) {
    config("layout: " + name, bend);
  }

  private void layouts() {
    String block = "model.layers.2.mlp.";
    layout("no experts at all", t -> t.tensors.keySet().removeIf(n -> n.contains("experts")));
    layout("a layer without experts", t -> t.tensors.keySet().removeIf(n -> n.startsWith(block)));
    layout(
        "a layer with a router only",
        t -> t.tensors.keySet().removeIf(n -> n.startsWith(block + "experts")));
    layout("no router", t -> t.drop(block + "gate.weight"));
    for (String projection : List.of("gate_proj", "up_proj", "down_proj")) {
      for (int e : new int[] {0, E - 1}) {
        String tensor = block + "experts." + e + "." + projection + ".weight";
        layout("no " + tensor, t -> t.drop(tensor));
        layout(
            "transposed " + tensor,
            t ->
                t.put(
                    tensor,
                    DType.BF16,
                    projection.equals("down_proj") ? I : H,
                    projection.equals("down_proj") ? H : I));
        layout("3-D " + tensor, t -> t.put(tensor, DType.BF16, 1, I, H));
        layout(
            "integers in " + tensor, t -> t.put(tensor, DType.I32, t.tensors.get(tensor).shape()));
        layout(
            "another dtype in " + tensor,
            t -> t.put(tensor, DType.F32, t.tensors.get(tensor).shape()));
      }
    }
    layout("an expert too many", t -> t.put(block + "experts.4.up_proj.weight", DType.BF16, I, H));
    layout(
        "an expert far away",
        t -> t.put(block + "experts.999999999999.up_proj.weight", DType.BF16, I, H));
    layout("a strange tensor", t -> t.put(block + "experts.0.side_proj.weight", DType.BF16, I, H));
    layout("a bias nobody knows", t -> t.put(block + "experts.0.up_proj.bias", DType.BF16, I));
    layout(
        "a shared expert nobody knows",
        t -> t.put(block + "shared_expert.up_proj.weight", DType.BF16, I, H));
    layout("two forms", t -> t.put(block + "experts.gate_up_proj", DType.BF16, E, 2 * I, H));
    layout(
        "two roots", t -> t.put("other.layers.1.mlp.experts.0.up_proj.weight", DType.BF16, I, H));
    layout("router of one expert", t -> t.put(block + "gate.weight", DType.BF16, 1, H));
    layout("router of integers", t -> t.put(block + "gate.weight", DType.I64, E, H));
    layout("router is a vector", t -> t.put(block + "gate.weight", DType.BF16, E));
    layout(
        "FP8 experts",
        t ->
            t.tensors.replaceAll((n, x) ->
                n.contains("experts") ? TinyCheckpoint.random(n, DType.U8, x.shape()) : x));
    layout(
        "MXFP4 experts",
        t -> {
          t.tensors.keySet().removeIf(n -> n.startsWith(block + "experts"));
          t.put(block + "experts.gate_up_proj_blocks", DType.U8, E, 2);
        });
    mxfp4();
  }

  private void mxfp4() {
    String gpt = "model.layers.0.mlp.";
    for (String matrix : List.of("gate_up_proj", "down_proj")) {
      for (String part : List.of("_blocks", "_scales")) {
        String name = gpt + "experts." + matrix + part;
        mxfp4("no " + name, t -> t.drop(name));
        mxfp4("floats in " + name, t -> t.put(name, DType.BF16, t.tensors.get(name).shape()));
        mxfp4("a short " + name, t -> t.put(name, DType.U8, E, 1));
        mxfp4("a flat " + name, t -> t.put(name, DType.U8, t.tensors.get(name).elementCount()));
      }
      mxfp4(
          "plain beside MXFP4 " + matrix,
          t -> t.put(gpt + "experts." + matrix, DType.BF16, E, 64, 64));
    }
    mxfp4("inputs that are no multiple of 32", t -> t.with("intermediate_size", 33));
    mxfp4("no inputs", t -> t.with("hidden_size", 0));
    mxfp4("huge inputs", t -> t.with("hidden_size", Integer.MAX_VALUE & ~31));
  }

  private void mxfp4(String name, Consumer<TinyCheckpoint> bend) {
    cases.add(
        "mxfp4: " + name,
        dir -> {
          TinyCheckpoint t = TinyCheckpoint.gptOssMxfp4();
          bend.accept(t);
          MoeCheckpoint.open(t.writeModel(dir)).close();
        });
  }
}
