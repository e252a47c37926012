package io.moe4j.checkpoint;

import static io.moe4j.checkpoint.TinyQuantised.awq;
import static io.moe4j.checkpoint.TinyQuantised.ctConfig;
import static io.moe4j.checkpoint.TinyQuantised.fp8;
import static io.moe4j.checkpoint.TinyQuantised.gptq;
import static io.moe4j.checkpoint.TinyQuantised.gptqConfig;
import static io.moe4j.checkpoint.TinyQuantised.int8;
import static io.moe4j.checkpoint.TinyQuantised.mxfp4;
import static io.moe4j.checkpoint.TinyQuantised.nvfp4;
import static io.moe4j.checkpoint.TinyQuantised.weights;
import static io.moe4j.checkpoint.TinyQuantised.words;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.sun.management.ThreadMXBean;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.TinyQuantised.Format;
import io.moe4j.reference.Dequantize;
import java.lang.foreign.MemorySegment;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.regex.Pattern;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Quantised checkpoints that are almost right: packing of another size, scales of another shape,
 * zero points and group indices out of range, configs that contradict. What comes out is a result
 * or a documented exception that names the tensor or the key, what it is and what is accepted.
 */
@NullUnmarked // a missing value fails the test where it is used
class QuantisedHostileTest {
  private static final long SEED = 20261130;
  private static final int FILES = 900;
  private static final long MAX_ALLOCATED = 64L << 20;
  private static final ThreadMXBean THREADS = (ThreadMXBean) ManagementFactory.getThreadMXBean();

  /** A tensor below the block, or a key of a config. */
  private static final Pattern NAMES =
      Pattern.compile("(experts\\.\\d+\\.|gate\\.weight|config\\.json).*", Pattern.DOTALL);

  private static final List<Object> VALUES =
      List.of(
          0,
          1,
          2,
          3,
          4,
          8,
          16,
          24,
          32,
          64,
          128,
          -1,
          -2,
          1 << 30,
          1L << 40,
          4.5,
          true,
          false,
          "",
          "group",
          "channel",
          "tensor",
          "block",
          "float",
          "int",
          "gemv",
          "marlin",
          "gptq_v2",
          List.of(),
          List.of(128, 128),
          List.of(1, 2, 3),
          List.of(0, 128),
          Map.of(),
          "e5m2",
          "re:(",
          "re:a{1000}{1000}");

  @TempDir Path dir;

  private record Base(Map<String, Object> config, Format format) {}

  private static List<Base> bases() {
    Map<String, Object> int4 =
        weights("num_bits", 4, "type", "int", "symmetric", false, "group_size", 16);
    Map<String, Object> ordered = new LinkedHashMap<>(gptqConfig(4, 16, false, "gptq_v2"));
    ordered.put("desc_act", true);
    return List.of(
        new Base(gptqConfig(4, 16, true, "gptq"), gptq(4, 16, true, false, 1, DType.F16)),
        new Base(gptqConfig(8, 16, false, "gptq"), gptq(8, 16, false, false, 1, DType.F16)),
        new Base(ordered, gptq(4, 16, false, true, 0, DType.F16)),
        new Base(
            weights("quant_method", "awq", "bits", 4, "group_size", 16, "zero_point", true),
            awq(16, true)),
        new Base(
            ctConfig("pack-quantized", int4), words(4, 16, false, false, DType.I64, DType.BF16)),
        new Base(
            ctConfig(
                "pack-quantized",
                weights("num_bits", 8, "type", "int", "group_size", 16, "actorder", "group")),
            words(8, 16, true, true, DType.I32, DType.BF16)),
        new Base(
            ctConfig(
                "int-quantized", weights("num_bits", 8, "strategy", "channel", "symmetric", false)),
            int8(false)),
        new Base(
            ctConfig(
                "float-quantized", weights("num_bits", 8, "type", "float", "strategy", "channel")),
            fp8(1, 0, ".weight_scale", DType.BF16, 2)),
        new Base(
            weights("quant_method", "fp8", "weight_block_size", List.of(16, 16)),
            fp8(16, 16, ".weight_scale_inv", DType.F32, 2)),
        new Base(
            weights("quant_method", "fp8", "activation_scheme", "static"),
            fp8(0, 0, ".weight_scale", DType.F32, 1)),
        new Base(
            ctConfig(
                "nvfp4-pack-quantized",
                weights(
                    "num_bits", 4, "type", "float", "strategy", "tensor_group", "group_size", 16)),
            nvfp4(false)),
        new Base(weights("quant_method", "modelopt", "quant_algo", "NVFP4"), nvfp4(true)),
        new Base(
            ctConfig(
                "mxfp4-pack-quantized",
                weights("num_bits", 4, "type", "float", "strategy", "group", "group_size", 32)),
            mxfp4(".weight_packed", ".weight_scale", DType.U8, DType.U8)),
        new Base(
            weights("quant_method", "modelopt", "quant_algo", "MXFP8"),
            fp8(1, 32, ".weight_scale", DType.U8, 2)));
  }

  @Test
  void almostRightCheckpoints() {
    List<Base> bases = bases();
    int refused = 0;
    for (int n = 0; n < FILES; n++) {
      Random random = new Random(SEED + n);
      Base base = bases.get(n % bases.size());
      TinyQuantised t = new TinyQuantised(32, 32, 2, n).experts(base.format());
      t.config(copy(base.config()));
      String what = n == 0 ? "nothing" : bend(t, random);
      Path at = t.file.writeModel(dir.resolve("m" + n));
      long before = THREADS.getCurrentThreadAllocatedBytes();
      try (MoeCheckpoint c = MoeCheckpoint.open(at)) {
        for (ExpertWeights.Expert e : c.weights(0).experts().experts()) {
          e.projections()
              .forEach(w -> {
                Dequantize.row(w, 0);
                Dequantize.row(w, w.out() - 1);
                toPlain(w);
              });
        }
        c.weights(0).requireFits(c.config(0));
        c.describe();
      } catch (CheckpointException e) {
        refused++;
        assertThat(e.getMessage())
            .as("file %d: %s", n, what)
            .matches(m -> NAMES.matcher(m).find(), "names a tensor or the config")
            .hasSizeLessThan(4000);
      } catch (RuntimeException e) {
        throw new AssertionError("file " + n + ": " + what, e);
      }
      assertThat(THREADS.getCurrentThreadAllocatedBytes() - before)
          .as("file %d: %s", n, what)
          .isLessThan(MAX_ALLOCATED);
    }
    assertThat(refused).isBetween(FILES / 2, FILES - 20);
  }

  /** Scales of noise may make numbers that BF16 has not: those are refused, with their place. */
  private static void toPlain(Weight w) {
    try {
      w.toPlain(DType.BF16);
    } catch (IllegalArgumentException e) {
      assertThat(e)
          .hasMessageMatching(
              "\\Q%s\\E.*, element \\[\\d+, \\d+] is .*, too large for BF16, .*"
                  .formatted(w.name()));
    }
  }

  @SuppressWarnings("unchecked")
  private static Map<String, Object> copy(Map<String, Object> from) {
    Map<String, Object> to = new LinkedHashMap<>();
    from.forEach((k, v) -> to.put(k, v instanceof Map<?, ?> m ? copy((Map<String, Object>) m) : v));
    return to;
  }

  /** Changes one thing; says what. */
  private static String bend(TinyQuantised t, Random random) {
    List<String> names = new ArrayList<>(t.file.tensors.keySet());
    names.removeIf(n -> !n.contains("experts."));
    String name = names.get(random.nextInt(names.size()));
    Tensor tensor = t.file.tensors.get(name);
    switch (random.nextInt(9)) {
      case 0 -> {
        t.file.tensors.remove(name);
        return name + " is gone";
      }
      case 1 -> {
        long[] shape = tensor.shape().length == 0 ? new long[] {1} : tensor.shape();
        int d = random.nextInt(shape.length);
        shape[d] = Math.max(0, shape[d] + random.nextInt(5) - 2);
        t.file.put(name, tensor.dtype(), shape);
        return name + " is " + t.file.tensors.get(name);
      }
      case 2 -> {
        DType dtype = DType.values()[random.nextInt(DType.values().length)];
        long[] shape = tensor.shape();
        if (dtype == DType.F4) {
          dtype = DType.U8;
        }
        t.file.put(name, dtype, shape);
        return name + " is " + t.file.tensors.get(name);
      }
      case 3 -> {
        List<String> parts = QuantisedNames.parts();
        String other =
            name.substring(0, name.lastIndexOf('.') + 1) + parts.get(random.nextInt(parts.size()));
        t.file.tensors.put(other, t.file.tensors.remove(name));
        return name + " is called " + other;
      }
      case 4 -> {
        String module = name.substring(0, name.indexOf("_proj") + 5);
        String part = random.nextBoolean() ? ".weight" : ".bias";
        t.file.put(module + part, DType.BF16, 32, 32);
        return module + part + " is there as well";
      }
      case 5 -> {
        // Any bytes: indices, zero points and shapes out of range, scales that are NaN.
        byte[] bytes = new byte[Math.toIntExact(tensor.dtype().byteSize(tensor.elementCount()))];
        random.nextBytes(bytes);
        t.file.tensors.put(
            name, Tensor.of(tensor.dtype(), MemorySegment.ofArray(bytes), tensor.shape()));
        return name + " holds noise";
      }
      default -> {
        return bendConfig(t.file.config, "quantization_config", random);
      }
    }
  }

  @SuppressWarnings("unchecked")
  private static String bendConfig(Map<String, Object> parent, String key, Random random) {
    Map<String, Object> config = (Map<String, Object>) parent.get(key);
    List<String> keys = new ArrayList<>(config.keySet());
    String chosen = keys.get(random.nextInt(keys.size()));
    if (config.get(chosen) instanceof Map<?, ?> m && !m.isEmpty() && random.nextInt(6) > 0) {
      return bendConfig(config, chosen, random);
    }
    if (random.nextInt(5) == 0) {
      config.remove(chosen);
      return chosen + " is not said";
    }
    Object value = VALUES.get(random.nextInt(VALUES.size()));
    config.put(chosen, value);
    return chosen + " is " + value;
  }

  // ------------------------------------------------------------------------- messages, one by one

  private void refused(TinyQuantised t, String... words) {
    Path at = t.file.writeModel(dir);
    assertThatThrownBy(
            () -> {
              try (MoeCheckpoint c = MoeCheckpoint.open(at)) {
                c.weights(0);
              }
            })
        .isInstanceOf(CheckpointException.class)
        .satisfies(e -> assertThat(e.getMessage()).contains(words));
  }

  private static TinyQuantised tiny(Map<String, Object> config, Format format) {
    return new TinyQuantised(64, 32, 2, 3).experts(format).config(copy(config));
  }

  private static final String UP = TinyQuantised.BLOCK + "experts.1.up_proj";

  @Test
  void packingOfAnotherSize() {
    // The file has 4 bits, the config says 8.
    refused(
        tiny(gptqConfig(8, 16, true, "gptq"), gptq(4, 16, true, false, 1, DType.F16)),
        "'experts.0.gate_proj.qweight' is I32[8, 32]",
        "must be I32 of shape [16, 32]",
        "says 8-bit int, groups of 16");
    refused(
        tiny(
            ctConfig("pack-quantized", weights("num_bits", 8, "type", "int", "group_size", 16)),
            words(4, 16, true, false, DType.I64, DType.BF16)),
        "'experts.0.gate_proj.weight_packed' is I32[32, 8]",
        "must be I32 of shape [32, 16]",
        "says 8-bit int");
    // GPTQ's packing where the config says AWQ.
    refused(
        tiny(
            weights("quant_method", "awq", "bits", 4, "group_size", 16),
            gptq(4, 16, false, false, 1, DType.F16)),
        "'experts.0.gate_proj.qweight' is I32[8, 32], must be I32 of shape [64, 4]",
        "quant_method 'awq'");
    TinyQuantised shape =
        tiny(
            ctConfig("pack-quantized", weights("num_bits", 4, "type", "int", "group_size", 16)),
            words(4, 16, true, false, DType.I64, DType.BF16));
    shape.file.tensors.get(UP + ".weight_shape").set(60, 1);
    refused(shape, "'experts.1.up_proj.weight_shape'", "[32.0, 60.0]", "[32, 64]");
  }

  @Test
  void scalesOfAnotherShape() {
    refused(
        tiny(gptqConfig(4, 32, true, "gptq"), gptq(4, 16, true, false, 1, DType.F16)),
        "'experts.0.gate_proj.scales' is F16[4, 32]",
        "of shape [2, 32]",
        "groups of 32");
    refused(
        tiny(
            weights("quant_method", "fp8", "weight_block_size", List.of(128, 128)),
            fp8(16, 16, ".weight_scale_inv", DType.F32, 2)),
        "'experts.0.gate_proj.weight_scale_inv' is F32[2, 4]",
        "[1, 1]",
        "blocks of 128x128");
    refused(
        tiny(weights("quant_method", "fp8"), fp8(16, 16, ".weight_scale_inv", DType.F32, 2)),
        "'experts.0.gate_proj.weight_scale_inv' is F32[2, 4]",
        "has no weight_block_size");
    refused(
        tiny(
            ctConfig(
                "float-quantized", weights("num_bits", 8, "type", "float", "strategy", "tensor")),
            fp8(1, 0, ".weight_scale", DType.F32, 2)),
        "'experts.0.gate_proj.weight_scale' is F32[32, 1]",
        "[1, 1]",
        "a scale a tensor");
    refused(
        tiny(
            ctConfig(
                "pack-quantized", weights("num_bits", 4, "type", "int", "strategy", "channel")),
            words(4, 16, true, false, DType.I64, DType.BF16)),
        "experts.0.gate_proj",
        "scales are BF16[32, 4]",
        "[32, 1]");
  }

  @Test
  void zeroPointsOutOfRange() {
    TinyQuantised v1 =
        tiny(gptqConfig(4, 16, false, "gptq"), gptq(4, 16, false, false, 1, DType.F16));
    v1.file.tensors.get(UP + ".qzeros").set(0x77f77777, 2, 1);
    refused(v1, "'experts.1.up_proj.qzeros'", "15 stored for output 13, group 2", "gptq_v2");
    TinyQuantised missing =
        tiny(gptqConfig(4, 16, false, "gptq"), gptq(4, 16, false, false, 1, DType.F16));
    missing.file.drop(UP + ".qzeros");
    refused(missing, "'experts.1.up_proj.qzeros' is missing", "asymmetric");
    // Zero points beside a config that says that there are none.
    refused(
        tiny(
            ctConfig("pack-quantized", weights("num_bits", 4, "type", "int", "group_size", 16)),
            words(4, 16, false, false, DType.I64, DType.BF16)),
        "'experts.0.gate_proj.weight_zero_point' holds other zero points than 8",
        "symmetric");
    refused(
        tiny(
            weights("quant_method", "awq", "bits", 4, "group_size", 16, "zero_point", false),
            awq(16, true)),
        "'experts.0.gate_proj.qzeros' holds other zero points than 8");
    TinyQuantised floats =
        tiny(
            ctConfig(
                "pack-quantized",
                weights("num_bits", 4, "type", "int", "group_size", 16, "symmetric", false)),
            words(4, 16, false, false, DType.I64, DType.BF16));
    floats.file.tensors.put(UP + ".weight_zero_point", Tensor.ofFloats(new float[32 * 4], 32, 4));
    floats.file.tensors.get(UP + ".weight_zero_point").set(8, 3, 1);
    refused(floats, "'experts.1.up_proj.weight_zero_point' holds 8.0", "-8..7");
  }

  @Test
  void groupIndicesOutOfRangeOrNotExpected() {
    Map<String, Object> ordered = copy(gptqConfig(4, 16, true, "gptq"));
    ordered.put("desc_act", true);
    for (int wrong : new int[] {-1, 4, 1 << 30}) {
      TinyQuantised t = tiny(ordered, gptq(4, 16, true, true, 1, DType.F16));
      t.file.tensors.get(UP + ".g_idx").set(wrong, 5);
      refused(t, "experts.1.up_proj group index of input 5 is " + wrong, "must be 0..3");
    }
    TinyQuantised missing = tiny(ordered, gptq(4, 16, true, true, 1, DType.F16));
    missing.file.drop(UP + ".g_idx");
    refused(missing, "'experts.1.up_proj.g_idx' is missing", "with act-order");
    refused(
        tiny(gptqConfig(4, 16, true, "gptq"), gptq(4, 16, true, true, 1, DType.F16)),
        "'experts.0.gate_proj.g_idx' sorts inputs into groups otherwise than by i / 16",
        "without act-order");
  }

  @Test
  void configsThatContradict() {
    refused(
        tiny(
            ctConfig("pack-quantized", weights("num_bits", 4, "type", "int", "group_size", 16)),
            nvfp4(false)),
        "'experts.0.gate_proj.weight_packed' is U8[32, 32], codes that are floats",
        "says 4-bit int");
    refused(
        tiny(
            ctConfig(
                "mxfp4-pack-quantized",
                weights("num_bits", 4, "type", "float", "strategy", "group", "group_size", 32)),
            nvfp4(false)),
        "'experts.0.gate_proj.weight_packed' has a global scale, as NVFP4 has",
        "E8M0");
    refused(
        tiny(
            ctConfig(
                "float-quantized",
                weights("num_bits", 8, "type", "float", "strategy", "group", "group_size", 32)),
            fp8(1, 32, ".weight_scale", DType.U8, 2)),
        "'experts.0.gate_proj.weight_scale' is U8[32, 2]",
        "powers of two",
        "scales of a float dtype");
    refused(
        tiny(
            ctConfig("pack-quantized", weights("num_bits", 3, "type", "int", "group_size", 16)),
            words(4, 16, true, false, DType.I64, DType.BF16)),
        "3-bit int",
        "accepted are 4 and 8 bits");
    refused(
        tiny(gptqConfig(3, 16, true, "gptq"), gptq(4, 16, true, false, 1, DType.F16)),
        "'bits' is 3, must be 4 or 8");
    for (String format : List.of("marlin", "gptq_p", "bitblas")) {
      refused(
          tiny(gptqConfig(4, 16, true, format), gptq(4, 16, true, false, 1, DType.F16)),
          "'checkpoint_format' is " + format,
          "gptq or gptq_v2");
    }
    for (String version : List.of("gemv", "gemv_fast", "marlin", "GEMV")) {
      refused(
          tiny(
              weights("quant_method", "awq", "bits", 4, "group_size", 16, "version", version),
              awq(16, true)),
          "'version' is " + version,
          "gemm");
    }
    refused(
        tiny(Map.of(), words(4, 16, true, false, DType.I64, DType.BF16)),
        "'experts.0.gate_proj.weight_packed'",
        "whose bits and groups a config must say");
  }

  @Test
  void otherMethodsAreRefusedByName() {
    for (String method : List.of("quark", "hqq", "bitsandbytes", "eetq", "torchao")) {
      refused(
          tiny(Map.of("quant_method", method), fp8(0, 0, ".weight_scale", DType.F32, 1)),
          "quant_method '" + method + "'",
          "accepted are FP8");
    }
    Map<String, Object> rotated =
        copy(ctConfig("pack-quantized", weights("num_bits", 4, "type", "int", "group_size", 16)));
    rotated.put(
        "transform_config", Map.of("config_groups", Map.of("R3", Map.of("type", "hadamard"))));
    refused(
        tiny(rotated, words(4, 16, true, false, DType.I64, DType.BF16)),
        "'transform_config'",
        "transforms");
  }
}
