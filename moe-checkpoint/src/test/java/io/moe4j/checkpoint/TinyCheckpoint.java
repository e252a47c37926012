package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.ObjectMapper;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;

/** Builds small checkpoints and adapters that tests can bend. Values depend on the name only. */
final class TinyCheckpoint {
  static final int E = 4;
  static final int H = 16;
  static final int I = 12;

  final Map<String, Object> config = new LinkedHashMap<>();
  final Map<String, Tensor> tensors = new LinkedHashMap<>();

  /** qwen3_moe with layer 0 dense and layers 1 and 2 MoE. */
  static TinyCheckpoint qwen3() {
    TinyCheckpoint t = new TinyCheckpoint();
    t.config.put("model_type", "qwen3_moe");
    t.config.put("hidden_size", H);
    t.config.put("moe_intermediate_size", I);
    t.config.put("num_experts", E);
    t.config.put("num_experts_per_tok", 2);
    t.config.put("num_hidden_layers", 3);
    t.config.put("hidden_act", "silu");
    t.config.put("norm_topk_prob", true);
    t.config.put("mlp_only_layers", List.of(0));
    t.put("model.embed_tokens.weight", DType.BF16, 8, H);
    t.put("model.layers.0.mlp.gate_proj.weight", DType.BF16, I, H);
    for (int layer = 1; layer <= 2; layer++) {
      String block = "model.layers." + layer + ".mlp.";
      t.put(block + "gate.weight", DType.BF16, E, H);
      for (int e = 0; e < E; e++) {
        t.put(block + "experts." + e + ".gate_proj.weight", DType.BF16, I, H);
        t.put(block + "experts." + e + ".up_proj.weight", DType.BF16, I, H);
        t.put(block + "experts." + e + ".down_proj.weight", DType.BF16, H, I);
      }
    }
    return t;
  }

  /** gpt_oss as it is published: one layer, experts in MXFP4. */
  static TinyCheckpoint gptOssMxfp4() {
    TinyCheckpoint t = new TinyCheckpoint();
    t.config.put("model_type", "gpt_oss");
    t.config.put("hidden_size", 64);
    t.config.put("intermediate_size", 32);
    t.config.put("num_local_experts", E);
    t.config.put("num_experts_per_tok", 2);
    t.config.put("num_hidden_layers", 1);
    String block = "model.layers.0.mlp.";
    t.put(block + "router.weight", DType.BF16, E, 64);
    t.put(block + "router.bias", DType.BF16, E);
    t.put(block + "experts.gate_up_proj_blocks", DType.U8, E, 64, 2, 16);
    t.put(block + "experts.gate_up_proj_scales", DType.U8, E, 64, 2);
    t.put(block + "experts.gate_up_proj_bias", DType.BF16, E, 64);
    t.put(block + "experts.down_proj_blocks", DType.U8, E, 64, 1, 16);
    t.put(block + "experts.down_proj_scales", DType.U8, E, 64, 1);
    t.put(block + "experts.down_proj_bias", DType.BF16, E, 64);
    return t;
  }

  /** An adapter's directory with nothing in it yet. */
  static TinyCheckpoint adapter(int rank, double alpha) {
    TinyCheckpoint t = new TinyCheckpoint();
    t.config.put("peft_type", "LORA");
    t.config.put("peft_version", "0.21.0");
    t.config.put("r", rank);
    t.config.put("lora_alpha", alpha);
    return t;
  }

  TinyCheckpoint with(String key, Object value) {
    config.put(key, value);
    return this;
  }

  TinyCheckpoint without(String key) {
    config.remove(key);
    return this;
  }

  TinyCheckpoint put(String name, DType dtype, long... shape) {
    tensors.put(name, random(name, dtype, shape));
    return this;
  }

  /** Both factors of a module. */
  TinyCheckpoint pair(String module, DType dtype, long[] a, long[] b) {
    put("base_model.model." + module + ".lora_A.weight", dtype, a);
    put("base_model.model." + module + ".lora_B.weight", dtype, b);
    return this;
  }

  TinyCheckpoint drop(String name) {
    if (tensors.remove(name) == null) {
      throw new IllegalArgumentException("no tensor '" + name + "'");
    }
    return this;
  }

  /** Multiples of 1/16 below 2, exact in every floating type. */
  static Tensor random(String name, DType dtype, long... shape) {
    long count = 1;
    for (long s : shape) {
      count *= s;
    }
    Tensor t =
        Tensor.of(dtype, Arena.ofAuto().allocate(Math.max(1, dtype.byteSize(count)), 8), shape);
    if (dtype.name().startsWith("F8") || dtype == DType.F4 || dtype == DType.U64) {
      return t;
    }
    Random random = new Random(name.hashCode());
    Tensor flat = t.reshape(count);
    for (long i = 0; i < count; i++) {
      flat.set((random.nextInt(63) - 31) / 16.0, i);
    }
    return t;
  }

  Path writeModel(Path dir) {
    return write(dir, "config.json", "model.safetensors");
  }

  Path writeAdapter(Path dir) {
    return write(dir, "adapter_config.json", "adapter_model.safetensors");
  }

  /** As mlx-lm calls its files. */
  Path writeMlx(Path dir) {
    return write(dir, "adapter_config.json", "adapters.safetensors");
  }

  private Path write(Path dir, String configName, String fileName) {
    try {
      Files.createDirectories(dir);
      Files.writeString(dir.resolve(configName), new ObjectMapper().writeValueAsString(config));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    SafetensorsWriter.write(dir.resolve(fileName), tensors, Map.of("format", "pt"));
    return dir;
  }
}
