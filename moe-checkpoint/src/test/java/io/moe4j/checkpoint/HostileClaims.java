package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.ObjectMapper;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.jspecify.annotations.NullUnmarked;

/** Small files that claim much: what they claim is checked before heap, time or disk follow. */
@NullUnmarked
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
final class HostileClaims {
  private static final int H = TinyCheckpoint.H;
  private static final int I = TinyCheckpoint.I;
  private static final String EXPERTS = "model.layers.1.mlp.experts";
  private static final long BILLIONS = 1L << 31;

  private final HostileCases cases;

  HostileClaims(HostileCases cases) {
    this.cases = cases;
  }

  void add() {
    headers();
    models();
    adapters();
  }

  /** Tensors of a file that takes no disk: a header, and nothing written behind it. */
  private static final class Sparse {
    private final Map<String, Object> header = new LinkedHashMap<>();
    private long at;

    Sparse put(String name, DType dtype, long... shape) {
      long bytes = dtype.bits() / 8;
      for (long s : shape) {
        bytes = s == 0 ? 0 : bytes * s;
      }
      header.put(
          name,
          Map.of(
              "dtype", dtype.name(), "shape", shape, "data_offsets", new long[] {at, at + bytes}));
      at += bytes;
      return this;
    }

    Sparse pair(String module, long[] a, long[] b) {
      return put(module + ".lora_A.weight", DType.F32, a)
          .put(module + ".lora_B.weight", DType.F32, b);
    }

    void write(Path file) throws IOException {
      byte[] json = new ObjectMapper().writeValueAsBytes(header);
      ByteBuffer start = ByteBuffer.allocate(8 + json.length).order(ByteOrder.LITTLE_ENDIAN);
      Files.write(file, start.putLong(json.length).put(json).array());
      try (RandomAccessFile f = new RandomAccessFile(file.toFile(), "rw")) {
        f.setLength(8 + json.length + at);
      }
    }
  }

  private void headers() {
    cases.add(
        "claim: a million entries of metadata",
        dir -> {
          StringBuilder json = new StringBuilder("{\"__metadata__\":{");
          for (int i = 0; i < 200_000; i++) {
            json.append(i == 0 ? "\"" : ",\"").append(Integer.toHexString(i)).append("\":\"\"");
          }
          byte[] bytes = json.append("}}").toString().getBytes(StandardCharsets.UTF_8);
          Files.write(
              dir.resolve("x.safetensors"), HostileCases.safetensors(bytes.length, bytes, 0));
          SafetensorsFile.open(dir.resolve("x.safetensors")).close();
        });
    cases.add(
        "claim: metadata of 17 million characters",
        dir -> {
          String text = "x".repeat(3 << 20);
          StringBuilder json = new StringBuilder("{\"__metadata__\":{");
          for (int i = 0; i < 6; i++) {
            json.append(i == 0 ? "\"" : ",\"").append(i).append("\":\"").append(text).append('"');
          }
          byte[] bytes = json.append("}}").toString().getBytes(StandardCharsets.UTF_8);
          Files.write(
              dir.resolve("x.safetensors"), HostileCases.safetensors(bytes.length, bytes, 0));
          SafetensorsFile.open(dir.resolve("x.safetensors")).close();
        });
    cases.add(
        "claim: an empty tensor whose other side is 2^62",
        dir -> {
          new Sparse().put("t", DType.U8, 1L << 62, 0).write(dir.resolve("x.safetensors"));
          SafetensorsFile.open(dir.resolve("x.safetensors")).close();
        });
  }

  private static void model(Path dir, Map<String, Object> config, Sparse tensors)
      throws IOException {
    Files.writeString(dir.resolve("config.json"), new ObjectMapper().writeValueAsString(config));
    tensors.write(dir.resolve("model.safetensors"));
    MoeCheckpoint.open(dir).close();
  }

  private static Map<String, Object> config(int layers, int experts) {
    Map<String, Object> c = new LinkedHashMap<>();
    c.put("model_type", "qwen3_moe");
    c.put("hidden_size", 1);
    c.put("moe_intermediate_size", 1);
    c.put("num_hidden_layers", layers);
    c.put("num_experts_per_tok", 1);
    c.put("num_experts", experts);
    return c;
  }

  private static Sparse layers(int layers, int experts) {
    Sparse s = new Sparse();
    for (int l = 0; l < layers; l++) {
      String block = "model.layers." + l + ".mlp.";
      s.put(block + "gate.weight", DType.BF16, experts, 1)
          .put(block + "experts.gate_up_proj", DType.BF16, experts, 2, 1)
          .put(block + "experts.down_proj", DType.BF16, experts, 1, 1);
    }
    return s;
  }

  private void models() {
    cases.add(
        "claim: five million experts",
        dir -> model(dir, config(1, 5_000_000), layers(1, 5_000_000)));
    cases.add(
        "claim: 160 thousand experts in ten layers",
        dir -> model(dir, config(10, 1 << 14), layers(10, 1 << 14)));
    cases.add(
        "claim: a shared expert 2^31 wide",
        dir -> {
          Map<String, Object> c = config(1, 2);
          c.put("model_type", "deepseek_v2");
          c.put("first_k_dense_replace", 0);
          c.put("n_routed_experts", c.remove("num_experts"));
          String shared = "model.layers.0.mlp.shared_experts.";
          model(
              dir,
              c,
              layers(1, 2)
                  .put(shared + "gate_proj.weight", DType.BF16, BILLIONS, 1)
                  .put(shared + "up_proj.weight", DType.BF16, BILLIONS, 1)
                  .put(shared + "down_proj.weight", DType.BF16, 1, BILLIONS));
        });
    for (Object count : new Object[] {1L << 31, 1L << 62, "9".repeat(60)}) {
      cases.add(
          "claim: n_shared_experts " + count,
          dir -> {
            Map<String, Object> c = config(1, 2);
            c.put("model_type", "deepseek_v2");
            c.put("first_k_dense_replace", 0);
            c.put(
                "n_shared_experts",
                count instanceof String s ? new java.math.BigInteger(s) : count);
            model(dir, c, layers(1, 2));
          });
    }
    cases.add(
        "claim: shared experts times their width",
        dir -> {
          Map<String, Object> c = config(1, 2);
          c.put("model_type", "deepseek_v2");
          c.put("first_k_dense_replace", 0);
          c.put("moe_intermediate_size", 1 << 20);
          c.put("n_shared_experts", 1 << 20);
          model(dir, c, layers(1, 2));
        });
    for (String name : List.of("\\ud800.safetensors", "a\\udfff.safetensors")) {
      cases.add(
          "claim: a shard named " + name,
          dir -> {
            Files.writeString(
                dir.resolve("config.json"), new ObjectMapper().writeValueAsString(config(1, 2)));
            Files.writeString(
                dir.resolve("model.safetensors.index.json"),
                "{\"weight_map\":{\"a\":\"" + name + "\"}}");
            MoeCheckpoint.open(dir).close();
          });
    }
  }

  private void adapter(String name, Map<String, Object> more, Sparse tensors) {
    cases.add(
        "claim: adapter, " + name,
        dir -> {
          Map<String, Object> config = new LinkedHashMap<>(Map.of("r", 4, "lora_alpha", 8));
          config.putAll(more);
          Files.writeString(
              dir.resolve("adapter_config.json"), new ObjectMapper().writeValueAsString(config));
          tensors.write(dir.resolve("adapter_model.safetensors"));
          PeftAdapter.load(
              dir, "x", HostileAdapters.model(), AdapterPolicy.LENIENT.withRouter(true));
        });
  }

  private void adapters() {
    long huge = 1L << 37;
    for (String module :
        List.of(
            EXPERTS,
            EXPERTS + ".base_layer",
            EXPERTS + ".w1",
            EXPERTS + ".gate_up_proj",
            EXPERTS + ".0.up_proj",
            EXPERTS + ".gate_up_projs.0",
            "model.layers.1.mlp.gate")) {
      for (long[][] s :
          new long[][][] {
            {{huge, 0}, {0, huge}},
            {{0, huge}, {huge, 0}},
            {{huge, 0, 0}, {0, 0, huge}},
            {{0, 0}, {0, 0}},
            {{}, {}},
            {{1}, {1}},
            {{1, 1, 1, 1}, {1, 1, 1, 1}},
            {{1L << 30, 1}, {1, 1}},
            {{BILLIONS, 1}, {1, BILLIONS}}
          }) {
        adapter(
            module + " of " + java.util.Arrays.deepToString(s),
            Map.of(),
            new Sparse().pair(module, s[0], s[1]));
      }
      for (String factor : List.of("A", "B")) {
        for (long[] shape : new long[][] {{}, {0, 0}, {1}, {huge, 0}, {1, 2, 3, 4}}) {
          adapter(
              module + ", a lone " + factor + " of " + java.util.Arrays.toString(shape),
              Map.of(),
              new Sparse().put(module + ".lora_" + factor + ".weight", DType.F32, shape));
        }
      }
    }
    adapter(
        "two million target_parameters",
        Map.of("target_parameters", Collections.nCopies(1_000_000, "z")),
        new Sparse().pair(EXPERTS, new long[] {0, 0}, new long[] {0, 0}));
    Sparse nested = new Sparse();
    for (int k = 0; k < 400; k++) {
      nested.pair(EXPERTS + ".base_layer".repeat(k), new long[] {0, 0}, new long[] {0, 0});
    }
    List<String> targets = new ArrayList<>();
    for (int i = 0; i < 10_000; i++) {
      targets.add("z" + i);
    }
    adapter("wrappers times targets", Map.of("target_parameters", targets), nested);
    cases.add(
        "claim: adapter, 4096 times its file",
        dir -> {
          Files.writeString(dir.resolve("adapter_config.json"), "{\"r\":1024,\"lora_alpha\":8}");
          new Sparse()
              .pair(
                  "model.layers.0.mlp.experts.0.up_proj",
                  new long[] {1024, 64},
                  new long[] {64, 1024})
              .write(dir.resolve("adapter_model.safetensors"));
          AdapterTargetModel model =
              new AdapterTargetModel(
                  KnownLayouts.all().get("qwen3_moe"),
                  Map.of(0, MoeConfig.builder(64, 64, 4096, 1).build()),
                  1);
          PeftAdapter.load(dir, "x", model, AdapterPolicy.DEFAULT);
        });
  }
}
