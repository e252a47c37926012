package io.moe4j.checkpoint;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.math.BigInteger;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.TreeMap;

/**
 * Makes inputs that are almost right: valid documents with a few places changed to values at the
 * edges, names built from the words that real names have, patterns from the signs that real
 * patterns have. What it makes depends on the seed alone.
 */
final class FuzzInputs {
  private static final JsonNodeFactory NODES = JsonNodeFactory.instance;
  private static final ObjectMapper JSON = new ObjectMapper();

  /** Written as half of a character, which no Java string of a name could be encoded with. */
  private static final String SURROGATE = "LONE_SURROGATE";

  private static final List<String> SEGMENTS =
      List.of(
          "base_model",
          "model",
          "language_model",
          "layers",
          "layer",
          "h",
          "blocks",
          "mlp",
          "moe",
          "block_sparse_moe",
          "feed_forward",
          "ffn",
          "mixer",
          "experts",
          "experts",
          "experts",
          "expert",
          "shared_expert",
          "shared_experts",
          "shared_expert_gate",
          "gate",
          "router",
          "0",
          "1",
          "1",
          "1",
          "2",
          "3",
          "4",
          "99",
          "01",
          "-1",
          "4294967296",
          "gate_proj",
          "up_proj",
          "down_proj",
          "gate_up_proj",
          "w1",
          "w2",
          "w3",
          "w13",
          "base_layer",
          "base_layer",
          "gate_up_projs",
          "down_projs",
          "self_attn",
          "q_proj",
          "input_layernorm",
          "_orig_mod",
          "module",
          "_fsdp_wrapped_module",
          "_checkpoint_wrapped_module",
          "vision_tower",
          "mtp",
          "talker",
          "eagle",
          "lora_A",
          "lora_B",
          "weight",
          "bias",
          "default",
          "lora_magnitude_vector",
          "lora_embedding_A",
          "modules_to_save",
          "original_module",
          "W_q",
          "qweight",
          "weight_scale_inv",
          "",
          "\u0661",
          "\u0000",
          "Experts",
          "e_score_correction_bias",
          SURROGATE);

  private static final List<String> SIGNS =
      List.of(
          "a",
          "model",
          "layers",
          "\\.",
          ".",
          "experts",
          "\\d+",
          ".*",
          "(",
          ")",
          "(?:",
          "|",
          "*",
          "+",
          "?",
          "{2}",
          "{1000}",
          "{0,}",
          "{100000}",
          "{1,3}",
          "[",
          "]",
          "[^.]",
          "^",
          "$",
          "\\",
          "\\b",
          "\\w",
          "(?=",
          "(?!",
          "(?<=",
          "\\1",
          "(?P<n>",
          "_orig_mod\\.",
          "\\Q",
          "\\E",
          "{",
          "}",
          "{,5}",
          "(?i)",
          "\\pL",
          "\\x{10FFFF}",
          "\ud83d\ude00");

  private final Random random;

  FuzzInputs(long seed) {
    this.random = new Random(seed);
  }

  Random random() {
    return random;
  }

  <T> T any(List<T> of) {
    return of.get(random.nextInt(of.size()));
  }

  boolean chance(int oneIn) {
    return random.nextInt(oneIn) == 0;
  }

  // ---- numbers and shapes ----

  long number() {
    return switch (random.nextInt(12)) {
      case 0 -> 0;
      case 1 -> -1;
      case 2 -> 1L << random.nextInt(63);
      case 3 -> (1L << random.nextInt(63)) - 1;
      case 4 -> Long.MIN_VALUE;
      case 5 -> Long.MAX_VALUE;
      case 6 -> 1 + random.nextInt(70_000);
      default -> 1 + random.nextInt(20);
    };
  }

  long[] shape(long... right) {
    if (!chance(3)) {
      return right;
    }
    long[] bent = Arrays.copyOf(right, chance(4) ? random.nextInt(5) : right.length);
    for (int n = random.nextInt(2); n >= 0 && bent.length > 0; n--) {
      bent[random.nextInt(bent.length)] = random.nextInt(30);
    }
    return bent;
  }

  // ---- names and patterns ----

  String name() {
    List<String> parts = new ArrayList<>();
    for (int n = 1 + random.nextInt(9); n > 0; n--) {
      parts.add(any(SEGMENTS));
    }
    return String.join(chance(30) ? ".." : ".", parts);
  }

  /** A name with a segment put in, left out or replaced. */
  String bend(String name) {
    List<String> parts = new ArrayList<>(List.of(name.split("\\.", -1)));
    for (int n = 1 + random.nextInt(2); n > 0 && !parts.isEmpty(); n--) {
      int at = random.nextInt(parts.size());
      switch (random.nextInt(4)) {
        case 0 -> parts.add(at, any(SEGMENTS));
        case 1 -> parts.remove(at);
        default -> parts.set(at, any(SEGMENTS));
      }
    }
    return String.join(".", parts);
  }

  String pattern() {
    StringBuilder s = new StringBuilder();
    for (int n = 1 + random.nextInt(14); n > 0; n--) {
      s.append(any(SIGNS));
    }
    return chance(20) ? s.toString().repeat(1 + random.nextInt(40)) : s.toString();
  }

  DType dtype() {
    DType some = any(List.of(DType.values()));
    return chance(8) && some.bits() >= Byte.SIZE
        ? some
        : any(List.of(DType.F32, DType.BF16, DType.F16));
  }

  // ---- documents ----

  /** A document with a few places changed. */
  JsonNode bend(JsonNode document) {
    JsonNode bent = document.deepCopy();
    for (int n = 1 + random.nextInt(3); n > 0; n--) {
      change(bent, 0);
    }
    return bent;
  }

  private void change(JsonNode node, int depth) {
    if (node instanceof ObjectNode object && !object.isEmpty()) {
      List<String> keys = new ArrayList<>();
      object.fieldNames().forEachRemaining(keys::add);
      String key = any(keys);
      JsonNode value = object.get(key);
      if (value.isContainerNode() && !value.isEmpty() && depth < 6 && !chance(4)) {
        change(value, depth + 1);
        return;
      }
      switch (random.nextInt(6)) {
        case 0 -> object.remove(key);
        case 1 -> object.set(chance(2) ? any(SEGMENTS) : bend(key), value);
        default -> object.set(key, value(value));
      }
    } else if (node instanceof ArrayNode array && !array.isEmpty()) {
      int at = random.nextInt(array.size());
      JsonNode value = array.get(at);
      if (value.isContainerNode() && !value.isEmpty() && depth < 6 && !chance(4)) {
        change(value, depth + 1);
      } else if (chance(4)) {
        array.remove(at);
      } else {
        array.set(at, value(value));
      }
    }
  }

  private JsonNode value(JsonNode old) {
    return switch (random.nextInt(14)) {
      case 0 -> NODES.nullNode();
      case 1 -> NODES.booleanNode(random.nextBoolean());
      case 2 -> NODES.textNode(chance(2) ? name() : any(SEGMENTS));
      case 3 -> NODES.numberNode(random.nextGaussian() * 1e10);
      case 4 -> NODES.numberNode(BigInteger.TWO.pow(64 + random.nextInt(100)));
      case 5 -> NODES.arrayNode();
      case 6 -> NODES.objectNode();
      case 7 -> NODES.arrayNode().add(old);
      case 8 -> NODES.numberNode(chance(2) ? Double.NaN : Double.POSITIVE_INFINITY);
      case 9 -> NODES.textNode(old.asText());
      default -> NODES.numberNode(number());
    };
  }

  /** The bytes of a document, sometimes with a key twice or a byte changed. */
  byte[] text(JsonNode document) {
    try {
      String text =
          JSON.writeValueAsString(document).replace("\"NaN\"", "NaN").replace(SURROGATE, "\\ud800");
      if (chance(6) && document instanceof ObjectNode object && !object.isEmpty()) {
        List<String> keys = new ArrayList<>();
        object.fieldNames().forEachRemaining(keys::add);
        String key = any(keys);
        String again =
            JSON.writeValueAsString(chance(2) ? object.get(key) : value(object.get(key)));
        text =
            text.substring(0, text.length() - 1)
                + ","
                + JSON.writeValueAsString(key)
                + ":"
                + again
                + "}";
      }
      byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
      return chance(5) ? damage(bytes) : bytes;
    } catch (IOException e) {
      throw new java.io.UncheckedIOException(e);
    }
  }

  byte[] damage(byte[] bytes) {
    if (bytes.length == 0) {
      return bytes;
    }
    byte[] bent =
        chance(6) ? Arrays.copyOf(bytes, random.nextInt(bytes.length + 9)) : bytes.clone();
    for (int n = random.nextInt(4); n > 0 && bent.length > 0; n--) {
      bent[random.nextInt(bent.length)] = (byte) random.nextInt(256);
    }
    return bent;
  }

  /** A safetensors file whose header was changed, with as much data as before. */
  byte[] safetensors(byte[] valid) throws IOException {
    int length =
        Math.toIntExact(
            java.nio.ByteBuffer.wrap(valid).order(java.nio.ByteOrder.LITTLE_ENDIAN).getLong());
    JsonNode header = JSON.readTree(Arrays.copyOfRange(valid, 8, 8 + length));
    byte[] json = text(chance(8) ? header : bend(header));
    int data = valid.length - 8 - length;
    byte[] file =
        HostileCases.safetensors(
            chance(20) ? number() : json.length,
            json,
            chance(20) ? random.nextInt(data + 9) : data);
    return chance(10) ? damage(file) : file;
  }

  // ---- adapters ----

  private static final List<String> TARGETS =
      List.of("gate_up_proj", "down_proj", "experts.down_proj");

  TinyCheckpoint adapter(int e, int h, int i) {
    int r = 1 + random.nextInt(3);
    TinyCheckpoint t = TinyCheckpoint.adapter(r, 4);
    String block = any(List.of("model.layers.1.mlp.", "model.layers.2.mlp.", "layers.1.mlp."));
    for (int n = 1 + random.nextInt(5); n > 0; n--) {
      String experts = block + "experts";
      int expert = random.nextInt(e + 1);
      switch (random.nextInt(9)) {
        case 0 -> pair(t, experts + "." + expert + ".up_proj", shape(r, h), shape(i, r));
        case 1 -> pair(t, experts + "." + expert + ".down_proj", shape(r, i), shape(h, r));
        case 2 -> pair(t, experts + ".base_layer", shape(r * e, h), shape(2L * i, r * e));
        case 3 -> pair(t, experts, shape(r * e, i), shape(h, r * e));
        case 4 -> pair(t, experts + ".w1", shape(e, r, h), shape(e, i, r));
        case 5 -> pair(t, experts + ".gate_up_proj", shape(1, r, h), shape(e, 2L * i, r));
        case 6 -> pair(t, block + "gate", shape(r, h), shape(e, r));
        case 7 -> pair(t, experts + ".gate_up_projs." + expert, shape(r, h), shape(2L * i, r));
        default -> pair(t, name(), shape(r, h), shape(i, r));
      }
    }
    if (chance(2)) {
      t.with("target_parameters", List.of(any(TARGETS), any(TARGETS)));
    }
    if (chance(3)) {
      t.with(any(List.of("rank_pattern", "alpha_pattern")), Map.of(pattern(), random.nextInt(9)));
    }
    if (chance(6)) {
      t.with("lora_B_layout", any(List.of("grouped_by_expert", "rank_major", "x")));
    }
    if (chance(9)) {
      t.with("auto_mapping", Map.of("unsloth_fixed", true));
    }
    if (chance(6)) {
      t.without("peft_version");
    }
    return t;
  }

  private void pair(TinyCheckpoint t, String module, long[] a, long[] b) {
    String at = chance(4) ? bend(module) : module;
    if (!chance(8)) {
      t.put("base_model.model." + at + ".lora_A.weight", dtype(), a);
    }
    if (!chance(8)) {
      t.put("base_model.model." + at + ".lora_B.weight", dtype(), b);
    }
  }

  /** A checkpoint with tensors renamed, reshaped, missing or too many. */
  TinyCheckpoint model() {
    TinyCheckpoint t = chance(3) ? TinyCheckpoint.gptOssMxfp4() : TinyCheckpoint.qwen3();
    for (int n = random.nextInt(4); n > 0; n--) {
      List<String> names = new ArrayList<>(new TreeMap<>(t.tensors).keySet());
      String name = any(names);
      switch (random.nextInt(4)) {
        case 0 -> t.drop(name);
        case 1 -> t.put(name, dtype(), shape(t.tensors.get(name).shape()));
        case 2 -> t.tensors.put(bend(name), t.tensors.get(name));
        default -> t.put(name(), dtype(), shape(4, 4));
      }
    }
    return t;
  }
}
