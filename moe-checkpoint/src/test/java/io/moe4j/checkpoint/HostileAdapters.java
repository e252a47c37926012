package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.tensor.DType;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;
import org.jspecify.annotations.NullUnmarked;

/** Malformed adapter configs and adapter tensors. */
@NullUnmarked
@SuppressWarnings("NarrowCalculation") // products of small constants as shapes
final class HostileAdapters {
  private static final String UP = HostileCases.UP;
  private static final int H = TinyCheckpoint.H;
  private static final int I = TinyCheckpoint.I;
  private static final int E = TinyCheckpoint.E;

  private final HostileCases cases;

  HostileAdapters(HostileCases cases) {
    this.cases = cases;
  }

  void add() {
    adapterConfigs();
    adapterTensors();
    mlxAdapters();
  }

  // ---- adapters ----

  static AdapterTargetModel model() {
    Map<Integer, MoeConfig> layers = new TreeMap<>();
    layers.put(1, MoeConfig.builder(H, I, E, 2).build());
    layers.put(2, MoeConfig.builder(H, I, E, 2).build());
    return new AdapterTargetModel(KnownLayouts.all().get("qwen3_moe"), layers, 3);
  }

  private static TinyCheckpoint adapter() {
    return TinyCheckpoint.adapter(2, 4).pair(UP, DType.F32, new long[] {2, H}, new long[] {I, 2});
  }

  private static void load(Path dir) {
    PeftAdapter.load(dir, "x", model(), AdapterPolicy.DEFAULT);
  }

  private void adapterConfig(String name, Consumer<TinyCheckpoint> bend) {
    cases.add(
        "adapter config: " + name,
        dir -> {
          TinyCheckpoint t = adapter();
          bend.accept(t);
          load(t.writeAdapter(dir));
        });
  }

  private void adapterConfigs() {
    for (String text :
        List.of(
            "",
            "[]",
            "null",
            "{",
            "{}",
            "x",
            "{\"r\":2,\"r\":3,\"lora_alpha\":1}",
            "{\"r\":" + "[".repeat(10_000) + "}",
            "{\"r\":2,\"lora_alpha\":NaN}",
            "{\"r\":2,\"lora_alpha\":1e999}")) {
      cases.add(
          "adapter config: text " + StrictJson.shorten(text),
          dir -> {
            adapter().writeAdapter(dir);
            Files.writeString(dir.resolve("adapter_config.json"), text);
            load(dir);
          });
    }
    cases.add(
        "adapter config: missing",
        dir -> {
          adapter().writeAdapter(dir);
          Files.delete(dir.resolve("adapter_config.json"));
          load(dir);
        });
    cases.add("adapter config: no directory", dir -> load(dir.resolve("none")));
    for (Object value : new Object[] {0, -4, 2.5, "2", 1L << 40, List.of(2), false}) {
      adapterConfig("r = " + value, t -> t.with("r", value));
    }
    for (Object value : new Object[] {"8", List.of(8), true, Map.of()}) {
      adapterConfig("lora_alpha = " + value, t -> t.with("lora_alpha", value));
    }
    adapterConfig("lora_alpha beyond F32", t -> t.with("lora_alpha", 1e300));
    adapterConfig("lora_alpha makes B infinite", t -> t.with("lora_alpha", 1e39));
    for (String key : List.of("rank_pattern", "alpha_pattern")) {
      for (Object value :
          new Object[] {
            1,
            "x",
            List.of(1),
            Map.of("a", "1"),
            Map.of("a", List.of()),
            Map.of("(", 1),
            Map.of("*", 1),
            Map.of("[a", 1),
            Map.of("(?=a)", 1),
            Map.of("(?!a)b", 1),
            Map.of("(?<=a)b", 1),
            Map.of("(a)\\1", 1),
            Map.of("a{1,2000}", 1),
            Map.of("((a{100}){100}){100}", 1),
            Map.of("(?:(?:){100000}){100000}", 1),
            Map.of("(?:){2147483647}", 1),
            Map.of("(?:(?:|){1000}){1000}", 1),
            Map.of("x".repeat(2000), 1),
            Map.of("(".repeat(900), 1)
          }) {
        adapterConfig(
            key + " = " + StrictJson.shorten(String.valueOf(value)), t -> t.with(key, value));
      }
    }
    for (Object value : new Object[] {1, true, Map.of("a", 1), List.of(1), List.of(List.of("x"))}) {
      adapterConfig("target_parameters = " + value, t -> t.with("target_parameters", value));
      adapterConfig("modules_to_save = " + value, t -> t.with("modules_to_save", value));
    }
    for (String type : List.of("IA3", "LOHA", "ADALORA", "PREFIX_TUNING", "", "lora")) {
      adapterConfig("peft_type " + type, t -> t.with("peft_type", type));
    }
    adapterConfig("peft_type is a number", t -> t.with("peft_type", 1));
    adapterConfig("use_rslora is a string", t -> t.with("use_rslora", "true"));
    adapterConfig("peft_version is a number", t -> t.with("peft_version", 0.21));
    for (String key : List.of("use_dora", "lora_bias", "use_qalora")) {
      adapterConfig(key, t -> t.with(key, true));
    }
    for (String init : List.of("pissa", "pissa_niter_16", "olora", "corda", "loftq")) {
      adapterConfig("initialised by " + init, t -> t.with("init_lora_weights", init));
    }
  }

  private void mlx(String name, Consumer<TinyCheckpoint> bend) {
    cases.add(
        "mlx: " + name,
        dir -> {
          String up = "model.layers.1.mlp.switch_mlp.up_proj.lora_";
          TinyCheckpoint t =
              new TinyCheckpoint()
                  .with("fine_tune_type", "lora")
                  .with("num_layers", 16)
                  .with("lora_parameters", new HashMap<>(Map.of("rank", 2, "scale", 20.0)))
                  .put(up + "a", DType.F32, E, 2, H)
                  .put(up + "b", DType.F32, E, I, 2);
          bend.accept(t);
          load(t.writeMlx(dir));
        });
  }

  private void mlxAdapters() {
    String a = "model.layers.1.mlp.switch_mlp.up_proj.lora_a";
    String b = "model.layers.1.mlp.switch_mlp.up_proj.lora_b";
    for (Object value : new Object[] {1, true, "x", List.of(1), Map.of()}) {
      mlx("lora_parameters = " + value, t -> t.with("lora_parameters", value));
    }
    for (Object rank : new Object[] {0, -1, 1e9, 2.5, "2", true, 3, Integer.MAX_VALUE}) {
      mlx("rank " + rank, t -> t.with("lora_parameters", Map.of("rank", rank, "scale", 20.0)));
    }
    for (Object scale : new Object[] {"20", true, List.of(20.0), 1e308, -1e39}) {
      mlx("scale " + scale, t -> t.with("lora_parameters", Map.of("rank", 2, "scale", scale)));
    }
    for (Object type : new Object[] {"full", "dora", "", "LORA", 1, true}) {
      mlx("fine_tune_type " + type, t -> t.with("fine_tune_type", type));
    }
    mlx("another peft_type", t -> t.with("peft_type", "LOHA"));
    mlx("a without b", t -> t.drop(b));
    mlx("b without a", t -> t.drop(a));
    mlx("a is a vector", t -> t.put(a, DType.F32, 2L * E * H));
    mlx("a is a scalar", t -> t.put(a, DType.F32));
    mlx("a is empty", t -> t.put(a, DType.F32, 0));
    mlx("a has four dimensions", t -> t.put(a, DType.F32, E, 1, 2, H));
    mlx("a folds other experts", t -> t.put(a, DType.F32, 2L * (E + 1), H));
    mlx("a folds nothing", t -> t.put(a, DType.F32, 0, H));
    mlx("b of no experts", t -> t.put(a, DType.F32, 0, H).put(b, DType.F32, 0, I, 2));
    mlx("both of rank 0", t -> t.put(a, DType.F32, E, 0, H).put(b, DType.F32, E, I, 0));
    mlx("integers", t -> t.put(a, DType.I32, E, 2, H));
    mlx("fc3", t -> t.put("model.layers.1.mlp.switch_mlp.fc3.lora_a", DType.F32, E, 2, H));
    mlx("no such layer", t -> t.put("model.layers.9.mlp.switch_mlp.up_proj.lora_a", DType.F32, E));
    String folded = "model.layers.1.mlp.experts.lora_";
    mlx(
        "experts folded as PEFT does",
        t -> t.put(folded + "a", DType.F32, H, 2 * E).put(folded + "b", DType.F32, 2 * E, 2 * I));
    mlx("only dots", t -> t.put("....lora_a", DType.F32, E).put(a + "x", DType.F32, 2));
    mlx("whole experts", t -> t.put(a.replace("lora_a", "weight"), DType.F32, E, I, H));
    mlx("not finite", t -> t.tensors.get(b).set(Double.NaN, 1, 2, 1));
  }

  private void adapterTensor(String name, Consumer<TinyCheckpoint> bend) {
    cases.add(
        "adapter: " + name,
        dir -> {
          TinyCheckpoint t = adapter();
          bend.accept(t);
          load(t.writeAdapter(dir));
        });
  }

  private void adapterTensors() {
    String a = "base_model.model." + UP + ".lora_A.weight";
    String b = "base_model.model." + UP + ".lora_B.weight";
    String experts = "model.layers.1.mlp.experts";
    adapterTensor("A without B", t -> t.drop(b));
    adapterTensor("B without A", t -> t.drop(a));
    adapterTensor("ranks differ", t -> t.put(b, DType.F32, I, 3));
    adapterTensor("rank 0", t -> t.put(a, DType.F32, 0, H).put(b, DType.F32, I, 0));
    adapterTensor("A too wide", t -> t.put(a, DType.F32, 2, H + 1));
    adapterTensor("A transposed", t -> t.put(a, DType.F32, H, 2));
    adapterTensor("B too tall", t -> t.put(b, DType.F32, I + 1, 2));
    adapterTensor("A is a vector", t -> t.put(a, DType.F32, H));
    adapterTensor("A is a scalar", t -> t.put(a, DType.F32));
    adapterTensor("A has five dimensions", t -> t.put(a, DType.F32, 1, 1, 1, 2, H));
    for (DType dtype :
        List.of(
            DType.I8,
            DType.I32,
            DType.I64,
            DType.U8,
            DType.BOOL,
            DType.F64,
            DType.F8_E4M3,
            DType.F4)) {
      adapterTensor("A of " + dtype, t -> t.put(a, dtype, 2, H));
    }
    for (double value :
        new double[] {Double.NaN, Double.POSITIVE_INFINITY, Double.NEGATIVE_INFINITY}) {
      for (DType dtype : List.of(DType.F32, DType.BF16, DType.F16)) {
        adapterTensor(
            value + " in A of " + dtype,
            t -> t.put(a, dtype, 2, H).tensors.get(a).set(value, 1, 5));
        adapterTensor(
            value + " in B of " + dtype,
            t -> t.put(b, dtype, I, 2).tensors.get(b).set(value, 5, 1));
      }
    }
    long[] up = {2, H};
    long[] upB = {I, 2};
    adapterTensor("expert too many", t -> t.pair(experts + ".4.up_proj", DType.F32, up, upB));
    adapterTensor(
        "expert with zeros in front", t -> t.pair(experts + ".01.up_proj", DType.F32, up, upB));
    adapterTensor(
        "expert far away", t -> t.pair(experts + ".99999999999.up_proj", DType.F32, up, upB));
    adapterTensor("expert negative", t -> t.pair(experts + ".-1.up_proj", DType.F32, up, upB));
    adapterTensor(
        "layer far away", t -> t.pair("model.layers.77.mlp.experts.0.up_proj", DType.F32, up, upB));
    adapterTensor(
        "experts of a dense layer",
        t -> t.pair("model.layers.0.mlp.experts.0.up_proj", DType.F32, up, upB));
    adapterTensor("unknown projection", t -> t.pair(experts + ".0.side_proj", DType.F32, up, upB));
    adapterTensor("the block itself", t -> t.pair("model.layers.1.mlp", DType.F32, up, upB));
    adapterTensor(
        "the router", t -> t.pair("model.layers.1.mlp.gate", DType.F32, up, new long[] {E, 2}));
    adapterTensor(
        "a shared expert that is not there",
        t -> t.pair("model.layers.1.mlp.shared_expert.up_proj", DType.F32, up, upB));
    adapterTensor(
        "the same expert under two roots",
        t -> t.pair("layers.1.mlp.experts.0.up_proj", DType.F32, up, upB));
    adapterTensor(
        "the same expert under two names", t -> t.pair(experts + ".0.w3", DType.F32, up, upB));
    adapterTensor(
        "fused beside per-expert",
        t ->
            t.with("target_parameters", List.of("gate_up_proj"))
                .pair(experts, DType.F32, new long[] {2 * E, H}, new long[] {2 * I, 2 * E}));
    adapterTensor(
        "fused, ambiguous",
        t -> t.pair(experts, DType.F32, new long[] {2 * E, 3}, new long[] {4, 2 * E}));
    for (long[][] s :
        new long[][][] {
          {{2 * E, H}, {2 * I, E}},
          {{2 * E + 1, H}, {2 * I, 2 * E + 1}},
          {{2 * E, H}, {I, 2 * E}},
          {{0, H}, {2 * I, 0}},
          {{2 * E, I}, {H, 2 * E}},
          {{3, H}, {2 * I, 5}},
          {{2, E, H}, {2 * I, 2 * E}},
          {{2 * E}, {2 * I}}
        }) {
      adapterTensor(
          "fused gate_up " + java.util.Arrays.deepToString(s),
          t ->
              t.with("target_parameters", List.of("gate_up_proj"))
                  .pair(experts, DType.F32, s[0], s[1]));
    }
    adapterTensor(
        "wrapped deeper than targeted",
        t ->
            t.with("target_parameters", List.of("gate_up_proj"))
                .pair(
                    experts + ".base_layer",
                    DType.F32,
                    new long[] {2 * E, H},
                    new long[] {2 * I, 2 * E}));
    adapterTensor(
        "wrapped without end",
        t ->
            t.with("target_parameters", List.of("gate_up_proj"))
                .pair(
                    experts + ".base_layer".repeat(300),
                    DType.F32,
                    new long[] {2 * E, H},
                    new long[] {2 * I, 2 * E}));
    adapterTensor(
        "stacked under a wrong expert count",
        t ->
            t.pair(experts + ".w1", DType.F32, new long[] {E + 1, 2, H}, new long[] {E + 1, I, 2}));
    String projs = experts + ".gate_up_projs.";
    for (String index : List.of("4", "-1", "01", "", "1.x", "99999999999999999999")) {
      adapterTensor(
          "gate and up of expert '" + index + "'",
          t -> t.pair(projs + index, DType.F32, up, new long[] {2 * I, 2}));
    }
    adapterTensor(
        "gate and up, ranks differ",
        t -> t.pair(projs + "1", DType.F32, up, new long[] {2 * I, 3}));
    for (long[] shape : new long[][] {{1, 2, H}, {0, 2, H}, {2, 2, H}, {2, H}, {0}}) {
      adapterTensor(
          "shared A " + java.util.Arrays.toString(shape) + " without partners",
          t ->
              t.put("base_model.model." + experts + ".w1.lora_A.weight", DType.F32, shape)
                  .put("base_model.model." + experts + ".w2.lora_A.weight", DType.F32, 2, I));
    }
    adapterTensor(
        "three dimensions under a wrapper, both orders fit",
        t ->
            t.with("target_parameters", List.of("down_proj"))
                .pair(experts, DType.F32, new long[] {1, 1, I}, new long[] {1, 1, 1}));
    adapterTensor(
        "magnitude vector",
        t -> t.put("base_model.model." + UP + ".lora_magnitude_vector.weight", DType.F32, I));
    adapterTensor("bias of B", t -> t.put("base_model.model." + UP + ".lora_B.bias", DType.F32, I));
    adapterTensor(
        "router saved whole",
        t -> t.put("base_model.model.model.layers.1.mlp.gate.weight", DType.F32, E, H));
    adapterTensor(
        "experts saved whole",
        t ->
            t.put(
                "base_model.model.model.layers.1.mlp.experts.gate_up_proj",
                DType.F32,
                E,
                2 * I,
                H));
    cases.add(
        "adapter: no weights",
        dir -> {
          adapter().writeAdapter(dir);
          Files.delete(dir.resolve("adapter_model.safetensors"));
          load(dir);
        });
    cases.add(
        "adapter: pickled weights",
        dir -> {
          adapter().writeAdapter(dir);
          Files.move(dir.resolve("adapter_model.safetensors"), dir.resolve("adapter_model.bin"));
          load(dir);
        });
    cases.add(
        "adapter: rank over the limit",
        dir ->
            PeftAdapter.load(
                adapter().writeAdapter(dir), "x", model(), AdapterPolicy.LENIENT.withMaxRank(1)));
    cases.add(
        "adapter: memory over the limit",
        dir ->
            PeftAdapter.load(
                adapter().writeAdapter(dir), "x", model(), AdapterPolicy.LENIENT.withMaxBytes(64)));
    cases.add(
        "adapter: attention where nothing may be skipped",
        dir ->
            PeftAdapter.load(
                adapter()
                    .pair("model.layers.1.self_attn.q_proj", DType.F32, up, new long[] {H, 2})
                    .writeAdapter(dir),
                "x",
                model(),
                AdapterPolicy.STRICT));
  }
}
