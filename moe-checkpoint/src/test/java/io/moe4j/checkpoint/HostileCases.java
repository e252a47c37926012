package io.moe4j.checkpoint;

import io.moe4j.api.tensor.DType;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.jspecify.annotations.NullUnmarked;

/**
 * Malformed files: each case writes into an empty directory and then tries to use what is there.
 */
@NullUnmarked
final class HostileCases {
  /** Something done with a directory of hostile files. */
  interface Attempt {
    void run(Path dir) throws IOException;
  }

  /**
   * One case.
   *
   * @param name unique
   * @param attempt writes the files and uses them
   */
  record Case(String name, Attempt attempt) {}

  static final String UP = "model.layers.1.mlp.experts.0.up_proj";

  private final List<Case> cases = new ArrayList<>();

  static List<Case> all() {
    HostileCases all = new HostileCases();
    all.headers();
    all.files();
    new HostileModels(all).add();
    new HostileAdapters(all).add();
    new HostileClaims(all).add();
    return all.cases;
  }

  void add(String name, Attempt attempt) {
    cases.add(new Case(name, attempt));
  }

  // ---- safetensors ----

  static byte[] safetensors(long headerLength, byte[] header, int dataBytes) {
    return ByteBuffer.allocate(8 + header.length + dataBytes)
        .order(ByteOrder.LITTLE_ENDIAN)
        .putLong(headerLength)
        .put(header)
        .array();
  }

  private void header(String name, String json, int dataBytes) {
    header(name, json.getBytes(StandardCharsets.UTF_8), dataBytes);
  }

  private void header(String name, byte[] json, int dataBytes) {
    raw("header: " + name, safetensors(json.length, json, dataBytes));
  }

  private void raw(String name, byte[] bytes) {
    add(
        name,
        dir -> {
          Path file = dir.resolve("x.safetensors");
          Files.write(file, bytes);
          SafetensorsFile.open(file).close();
        });
  }

  private static String entry(String dtype, String shape, String offsets) {
    return "{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
  }

  private void headers() {
    String good = entry("\"F32\"", "[2]", "[0,8]");
    header("empty", "", 0);
    header("blank", "   ", 0);
    header("array", "[]", 0);
    header("string", "\"x\"", 0);
    header("null", "null", 0);
    header("number", "42", 0);
    header("leading space", " {}", 0);
    header("byte order mark", "\ufeff{}", 0);
    header("unclosed", "{\"a\":" + good, 8);
    header("cut in a name", "{\"a", 0);
    header("two objects", "{}{}", 0);
    header("text behind", "{} x", 0);
    header("NUL behind", "{}\u0000", 0);
    header("trailing comma", "{\"a\":" + good + ",}", 8);
    header("single quotes", "{'a':1}", 0);
    header("comment", "{/*x*/\"a\":" + good + "}", 8);
    header("duplicate tensor", "{\"a\":" + good + ",\"a\":" + good + "}", 8);
    header(
        "duplicate by escape",
        "{\"a\":" + good + ",\"\\u0061\":" + entry("\"F32\"", "[0]", "[8,8]") + "}",
        8);
    header(
        "duplicate dtype",
        "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
        8);
    header("duplicate metadata", "{\"__metadata__\":{},\"__metadata__\":{},\"a\":" + good + "}", 8);
    header(
        "duplicate metadata key",
        "{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"},\"a\":" + good + "}",
        8);
    header("metadata is a list", "{\"__metadata__\":[],\"a\":" + good + "}", 8);
    header("metadata is null", "{\"__metadata__\":null}", 0);
    header("metadata number", "{\"__metadata__\":{\"k\":1}}", 0);
    header("metadata nested", "{\"__metadata__\":{\"k\":{\"l\":\"m\"}}}", 0);
    header("tensor is a number", "{\"a\":1}", 0);
    header("tensor is a list", "{\"a\":[]}", 0);
    header("tensor is null", "{\"a\":null}", 0);
    header("tensor is empty", "{\"a\":{}}", 0);
    header("no dtype", "{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", 8);
    header("no shape", "{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", 8);
    header("no offsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8);
    header(
        "unknown field",
        "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}",
        8);
    for (String dtype :
        List.of(
            "\"f32\"",
            "\"F 32\"",
            "\"\"",
            "1",
            "null",
            "[]",
            "{}",
            "\"BF16 \"",
            "\"C64\"",
            "true")) {
      header("dtype " + dtype, "{\"a\":" + entry(dtype, "[2]", "[0,8]") + "}", 8);
    }
    for (String shape :
        List.of(
            "2",
            "null",
            "{}",
            "\"2\"",
            "[-1]",
            "[-2,-1]",
            "[2.0]",
            "[2.5]",
            "[\"2\"]",
            "[null]",
            "[[2]]",
            "[1e1]",
            "[9223372036854775807]",
            "[9223372036854775808]",
            "[4611686018427387904,2]",
            "[4294967296,4294967296]",
            "[3]",
            "[1]",
            "[]",
            "[2,0]",
            "[18446744073709551618]",
            "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,2]",
            "[true]",
            "[2147483648,2147483648,2]")) {
      header("shape " + shape, "{\"a\":" + entry("\"F32\"", shape, "[0,8]") + "}", 8);
    }
    for (String offsets :
        List.of(
            "0",
            "null",
            "[]",
            "[0]",
            "[0,8,16]",
            "[8,0]",
            "[-8,0]",
            "[0,-8]",
            "[0,7]",
            "[0,9]",
            "[1,9]",
            "[8,16]",
            "[0,8.0]",
            "[\"0\",\"8\"]",
            "[9223372036854775807,9223372036854775807]",
            "[9223372036854775800,9223372036854775808]",
            "[0,18446744073709551624]",
            "{\"0\":8}")) {
      header("offsets " + offsets, "{\"a\":" + entry("\"F32\"", "[2]", offsets) + "}", 8);
    }
    header("overlap", "{\"a\":" + good + ",\"b\":" + entry("\"F32\"", "[2]", "[4,12]") + "}", 12);
    header("same place", "{\"a\":" + good + ",\"b\":" + good + "}", 8);
    header("hole", "{\"a\":" + good + ",\"b\":" + entry("\"F32\"", "[1]", "[12,16]") + "}", 16);
    header("hole in front", "{\"a\":" + entry("\"F32\"", "[1]", "[4,8]") + "}", 8);
    header(
        "empty tensor in a hole",
        "{\"a\":" + good + ",\"b\":" + entry("\"F32\"", "[0]", "[4,4]") + "}",
        8);
    header(
        "empty tensor far away",
        "{\"a\":" + good + ",\"b\":" + entry("\"F32\"", "[0]", "[99,99]") + "}",
        8);
    header("trailing bytes", "{\"a\":" + good + "}", 9);
    header("no tensors but data", "{}", 8);
    header("data missing", "{\"a\":" + good + "}", 7);
    header("half a byte", "{\"a\":" + entry("\"F4\"", "[3]", "[0,1]") + "}", 1);
    header("deep", "{\"a\":" + "[".repeat(5000) + "]".repeat(5000) + "}", 0);
    header("deep objects", "{\"a\":".repeat(5000) + "1" + "}".repeat(5000), 0);
    header(
        "endless number",
        "{\"a\":" + entry("\"F32\"", "[" + "9".repeat(5000) + "]", "[0,8]") + "}",
        8);
    header("endless name", "{\"" + "x".repeat(100_000) + "\":" + good + "}", 8);
    header(
        "empty product overflow",
        "{\"a\":" + entry("\"F32\"", "[9223372036854775807,9223372036854775807,0]", "[0,0]") + "}",
        0);
    header(
        "empty strides overflow",
        "{\"a\":" + entry("\"F32\"", "[0,9223372036854775807,9223372036854775807]", "[0,0]") + "}",
        0);
    header("not UTF-8", new byte[] {'{', '"', (byte) 0xff, (byte) 0xfe, '"', ':', '1', '}'}, 0);
    header(
        "overlong UTF-8", new byte[] {'{', '"', (byte) 0xc0, (byte) 0xaf, '"', ':', '1', '}'}, 0);
    header(
        "lone surrogate in UTF-8",
        new byte[] {'{', '"', (byte) 0xed, (byte) 0xa0, (byte) 0x80, '"', ':', '1', '}'},
        0);
    header("UTF-16", "{\"a\":{}}".getBytes(StandardCharsets.UTF_16LE), 0);
    header("UTF-32", "{\"a\":{}}".getBytes(java.nio.charset.Charset.forName("UTF-32LE")), 0);
    header("infinity", "{\"a\":" + entry("\"F32\"", "[Infinity]", "[0,8]") + "}", 8);
    header("NaN", "{\"a\":" + entry("\"F32\"", "[NaN]", "[0,8]") + "}", 8);
    header("octal", "{\"a\":" + entry("\"F32\"", "[002]", "[0,8]") + "}", 8);
    header("hexadecimal", "{\"a\":" + entry("\"F32\"", "[0x2]", "[0,8]") + "}", 8);
    header("control character", "{\"a\u0001\":" + good + "}", 8);
  }

  private void files() {
    byte[] small = "{}".getBytes(StandardCharsets.UTF_8);
    raw("file: empty", new byte[0]);
    raw("file: 7 bytes", new byte[7]);
    raw("file: 8 zero bytes", new byte[8]);
    raw("file: 9 bytes", new byte[9]);
    raw("file: all zero", new byte[1000]);
    raw("file: text", "this is no safetensors file at all".getBytes(StandardCharsets.UTF_8));
    raw("file: zip", new byte[] {'P', 'K', 3, 4, 20, 0, 0, 0, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8});
    for (long length :
        new long[] {
          -1,
          Long.MIN_VALUE,
          Long.MAX_VALUE,
          0,
          1,
          3,
          100_000_001,
          99_999_999,
          1L << 32,
          1L << 40,
          Integer.MAX_VALUE,
          Integer.MAX_VALUE + 1L
        }) {
      raw("file: header length " + length, safetensors(length, small, 0));
    }
    add("file: does not exist", dir -> SafetensorsFile.open(dir.resolve("none")).close());
    add("file: is a directory", dir -> SafetensorsFile.open(dir).close());
    byte[] valid = validFile();
    int headerEnd =
        Math.toIntExact(8 + ByteBuffer.wrap(valid).order(ByteOrder.LITTLE_ENDIAN).getLong());
    for (int length = 10; length < valid.length; length += 37) {
      raw("file: cut to " + length, java.util.Arrays.copyOf(valid, length));
    }
    raw("file: a byte too long", java.util.Arrays.copyOf(valid, valid.length + 1));
    byte[] shifted = valid.clone();
    shifted[0]++;
    raw("file: header one longer", shifted);
    byte[] less = valid.clone();
    less[0]--;
    less[headerEnd - 1] = 'x';
    raw("file: header one shorter", less);
  }

  static byte[] validFile() {
    try {
      Path dir = Files.createTempDirectory("valid");
      TinyCheckpoint.adapter(2, 2)
          .pair(UP, DType.F32, new long[] {2, TinyCheckpoint.H}, new long[] {TinyCheckpoint.I, 2})
          .writeAdapter(dir);
      byte[] bytes = Files.readAllBytes(dir.resolve("adapter_model.safetensors"));
      Files.delete(dir.resolve("adapter_model.safetensors"));
      Files.delete(dir.resolve("adapter_config.json"));
      Files.delete(dir);
      return bytes;
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
