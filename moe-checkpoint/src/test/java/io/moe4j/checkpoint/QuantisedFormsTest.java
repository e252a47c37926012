package io.moe4j.checkpoint;

import static io.moe4j.checkpoint.TinyQuantised.awq;
import static io.moe4j.checkpoint.TinyQuantised.ctConfig;
import static io.moe4j.checkpoint.TinyQuantised.fp8;
import static io.moe4j.checkpoint.TinyQuantised.gptq;
import static io.moe4j.checkpoint.TinyQuantised.gptqConfig;
import static io.moe4j.checkpoint.TinyQuantised.int8;
import static io.moe4j.checkpoint.TinyQuantised.mxfp4;
import static io.moe4j.checkpoint.TinyQuantised.nvfp4;
import static io.moe4j.checkpoint.TinyQuantised.plain;
import static io.moe4j.checkpoint.TinyQuantised.weights;
import static io.moe4j.checkpoint.TinyQuantised.words;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.TinyQuantised.Format;
import io.moe4j.reference.Dequantize;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.jspecify.annotations.NullUnmarked;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;

/**
 * Every format in sizes and variants that the recorded checkpoints do not have: odd sizes, partial
 * blocks and words, groups that do not divide, act-order, many experts, old names, several formats
 * in one file. What a map stands for is worked out where it is packed.
 */
@NullUnmarked // a missing value fails the test where it is used
class QuantisedFormsTest {
  @TempDir Path dir;

  private record Variant(Map<String, Object> config, Format format, String scheme, int[] sizes) {}

  private static final int[] USUAL = {64, 32, 3};
  private static final int[] MANY = {32, 16, 16};

  private final Map<String, Variant> variants = new LinkedHashMap<>();

  private void add(
      String name, Map<String, Object> config, Format format, String scheme, int... sizes) {
    variants.put(name, new Variant(config, format, scheme, sizes.length == 0 ? USUAL : sizes));
  }

  private static Map<String, Object> with(Map<String, Object> map, Object... keysAndValues) {
    Map<String, Object> more = new LinkedHashMap<>(map);
    more.putAll(weights(keysAndValues));
    return more;
  }

  private static Map<String, Object> without(Map<String, Object> map, String key) {
    Map<String, Object> less = new LinkedHashMap<>(map);
    less.remove(key);
    return less;
  }

  private void gptqVariants() {
    add(
        "gptq group 16, E 16",
        gptqConfig(4, 16, true, "gptq"),
        gptq(4, 16, true, false, 1, DType.F16),
        "int4 group 16",
        MANY);
    add(
        "gptq without checkpoint_format",
        without(gptqConfig(4, 32, false, "gptq"), "checkpoint_format"),
        gptq(4, 32, false, false, 1, DType.F16),
        "int4 group 32 asymmetric");
    add(
        "gptq with 'format'",
        with(without(gptqConfig(4, 32, false, "gptq"), "checkpoint_format"), "format", "gptq_v2"),
        gptq(4, 32, false, false, 0, DType.F16),
        "int4 group 32 asymmetric");
    add(
        "gptq all inputs",
        gptqConfig(4, -1, false, "gptq_v2"),
        gptq(4, -1, false, false, 0, DType.BF16),
        "int4 per channel asymmetric");
    add(
        "gptq all inputs, desc_act",
        with(gptqConfig(4, -1, true, "gptq"), "desc_act", true),
        gptq(4, -1, true, false, 1, DType.F16),
        "int4 per channel");
    add(
        "gptq short last group",
        gptqConfig(4, 24, true, "gptq"),
        gptq(4, 24, true, false, 1, DType.F16),
        "int4 group 24");
    add(
        "gptq act-order",
        with(gptqConfig(4, 16, false, "gptq_v2"), "desc_act", true),
        gptq(4, 16, false, true, 0, DType.F16),
        "int4 group 16 asymmetric act-order");
    add(
        "gptq act-order that sorts nothing",
        with(gptqConfig(4, 16, true, "gptq"), "desc_act", true),
        gptq(4, 16, true, false, 1, DType.F16),
        "int4 group 16");
    add(
        "gptq 8 bit act-order",
        with(gptqConfig(8, 16, true, "gptq"), "desc_act", true),
        gptq(8, 16, true, true, 1, DType.F32),
        "int8 group 16 act-order");
    add(
        "gptq 8 bit asymmetric v1",
        gptqConfig(8, 16, false, "gptq"),
        gptq(8, 16, false, false, 1, DType.F16),
        "int8 group 16 asymmetric");
    add(
        "gptq dynamic bits",
        with(
            gptqConfig(4, 32, true, "gptq"),
            "dynamic",
            Map.of("+:.*experts.*", Map.of("bits", 8, "group_size", 16))),
        gptq(8, 16, true, false, 1, DType.F16),
        "int8 group 16");
    add(
        "gptq dynamic leaves out what is quantised",
        with(gptqConfig(4, 32, true, "gptq"), "dynamic", Map.of("-:.*experts.*", Map.of())),
        gptq(4, 32, true, false, 1, DType.F16),
        "int4 group 32");
    add(
        "auto-round as gptq",
        weights(
            "quant_method",
            "auto-round",
            "bits",
            4,
            "group_size",
            32,
            "sym",
            true,
            "packing_format",
            "auto_round:auto_gptq"),
        gptq(4, 32, true, false, 1, DType.F16),
        "int4 group 32");
    add(
        "auto-round as awq",
        weights(
            "quant_method",
            "auto-round",
            "bits",
            4,
            "group_size",
            32,
            "sym",
            false,
            "packing_format",
            "auto_round:auto_awq"),
        awq(32, true),
        "int4 group 32 asymmetric");
    add(
        "awq, AutoAWQ's own names",
        weights("quant_method", "awq", "w_bit", 4, "q_group_size", 16, "version", "GEMM"),
        awq(16, true),
        "int4 group 16 asymmetric",
        MANY);
    add(
        "awq without zero points",
        weights("quant_method", "awq", "bits", 4, "group_size", 32, "zero_point", false),
        awq(32, false),
        "int4 group 32");
    add(
        "awq all inputs",
        weights("quant_method", "awq", "bits", 4, "group_size", -1, "zero_point", true),
        awq(-1, true),
        "int4 per channel asymmetric",
        40,
        24,
        2);
  }

  private void compressedTensorsVariants() {
    for (int bits : new int[] {4, 8}) {
      Map<String, Object> group =
          weights(
              "num_bits",
              bits,
              "type",
              "int",
              "symmetric",
              true,
              "strategy",
              "group",
              "group_size",
              16);
      add(
          "words I32 shape " + bits,
          ctConfig("pack-quantized", group),
          words(bits, 16, true, false, DType.I32, DType.BF16),
          "int" + bits + " group 16",
          MANY);
      add(
          "words no shape " + bits,
          ctConfig("pack-quantized", group),
          words(bits, 16, true, false, null, DType.F32),
          "int" + bits + " group 16");
      add(
          "words asymmetric odd " + bits,
          ctConfig("pack-quantized", with(group, "symmetric", false)),
          words(bits, 16, false, false, DType.I64, DType.F16),
          "int" + bits + " group 16 asymmetric",
          48,
          20,
          3);
      add(
          "words one group of fewer inputs " + bits,
          ctConfig("pack-quantized", with(group, "group_size", 128)),
          words(bits, 128, true, false, DType.I64, DType.BF16),
          "int" + bits + " group 128");
      add(
          "words act-order " + bits,
          ctConfig("pack-quantized", with(group, "actorder", "group", "symmetric", false)),
          words(bits, 16, false, true, DType.I64, DType.BF16),
          "int" + bits + " group 16 asymmetric act-order");
      add(
          "words actorder weight " + bits,
          ctConfig("pack-quantized", with(group, "actorder", "weight")),
          words(bits, 16, true, false, DType.I64, DType.BF16),
          "int" + bits + " group 16");
      add(
          "words a scale a channel, odd inputs " + bits,
          ctConfig("pack-quantized", weights("num_bits", bits, "type", "int", "group_size", -1)),
          words(bits, -1, true, false, DType.I64, DType.BF16),
          "int" + bits + " per channel",
          37,
          13,
          2);
      add(
          "words asymmetric channel " + bits,
          ctConfig(
              "pack-quantized",
              weights("num_bits", bits, "type", "int", "strategy", "channel", "symmetric", false)),
          words(bits, -1, false, false, DType.I64, DType.BF16),
          "int" + bits + " per channel asymmetric",
          37,
          13,
          2);
    }
    add(
        "int8 asymmetric",
        ctConfig(
            "int-quantized",
            weights("num_bits", 8, "type", "int", "strategy", "channel", "symmetric", false)),
        int8(false),
        "int8 per channel asymmetric",
        37,
        13,
        3);
    add(
        "int8 E 16",
        ctConfig("int-quantized", weights("num_bits", 8, "type", "int", "strategy", "channel")),
        int8(true),
        "int8 per channel",
        MANY);
    add(
        "mxfp4 E 16",
        ctConfig(
            "mxfp4-pack-quantized",
            weights("num_bits", 4, "type", "float", "strategy", "group", "group_size", 32)),
        mxfp4(".weight_packed", ".weight_scale", DType.U8, DType.U8),
        "mxfp4",
        64,
        32,
        16);
    add(
        "mxfp4 short last group",
        ctConfig(
            "mxfp4-pack-quantized",
            weights("num_bits", 4, "type", "float", "strategy", "group", "group_size", 32)),
        mxfp4(".weight_packed", ".weight_scale", DType.U8, DType.F8_E8M0),
        "mxfp4",
        50,
        22,
        2);
    add(
        "fp4 of deepseek_v4",
        weights(
            "quant_method", "fp8", "weight_block_size", List.of(128, 128), "scale_fmt", "ue8m0"),
        mxfp4(".weight", ".scale", DType.I8, DType.F8_E8M0),
        "mxfp4, activations fp8 dynamic per group e8m0 128");
    add(
        "nvfp4 of compressed-tensors",
        ctConfig(
            "nvfp4-pack-quantized",
            weights("num_bits", 4, "type", "float", "strategy", "tensor_group", "group_size", 16)),
        nvfp4(false),
        "nvfp4",
        48,
        16,
        3);
    add(
        "nvfp4 of modelopt",
        weights("quant_method", "modelopt", "quant_algo", "W4A16_NVFP4"),
        nvfp4(true),
        "nvfp4",
        48,
        16,
        3);
    add(
        "nvfp4 of modelopt, small letters",
        weights("quant_method", "modelopt", "quant_algo", "nvfp4", "group_size", 16),
        nvfp4(true),
        "nvfp4, activations fp4 static and per group 16");
    add(
        "mxfp8 of compressed-tensors",
        ctConfig(
            "mxfp8-quantized",
            weights("num_bits", 8, "type", "float", "strategy", "group", "group_size", 32)),
        fp8(1, 32, ".weight_scale", DType.U8, 2),
        "mxfp8",
        70,
        33,
        2);
    add(
        "mxfp8 of modelopt",
        weights("quant_method", "modelopt", "quant_algo", "MXFP8"),
        fp8(1, 32, ".weight_scale", DType.U8, 2),
        "mxfp8, activations fp8 dynamic per group e8m0 32");
    add(
        "fp8 of compressed-tensors in blocks",
        ctConfig(
            "float-quantized",
            weights(
                "num_bits", 8, "type", "float", "strategy", "block", "block_structure", "32x16")),
        fp8(32, 16, ".weight_scale", DType.BF16, 2),
        "fp8 block 32x16",
        72,
        40,
        2);
    add(
        "fp8 of compressed-tensors in groups",
        ctConfig(
            "float-quantized",
            weights("num_bits", 8, "type", "float", "strategy", "group", "group_size", 16)),
        fp8(1, 16, ".weight_scale", DType.F32, 2),
        "fp8 group 16");
    add(
        "naive-quantized a tensor",
        ctConfig("naive-quantized", weights("num_bits", 8, "type", "float", "strategy", "tensor")),
        fp8(0, 0, ".weight_scale", DType.F32, 0),
        "fp8 per tensor",
        37,
        13,
        2);
    add(
        "float-quantized a channel, one dimension",
        ctConfig("float-quantized", weights("num_bits", 8, "type", "float", "strategy", "channel")),
        fp8(1, 0, ".weight_scale", DType.BF16, 1),
        "fp8 per channel",
        37,
        13,
        2);
  }

  private void fp8Variants() {
    String act = ", activations fp8 dynamic per group ";
    Map<String, Object> block =
        weights("quant_method", "fp8", "weight_block_size", List.of(128, 128));
    add(
        "fp8 partial blocks",
        block,
        fp8(128, 128, ".weight_scale_inv", DType.F32, 2),
        "fp8 block 128x128" + act + 128,
        200,
        144,
        2);
    add(
        "fp8 blocks, BF16 scales, E 16",
        block,
        fp8(128, 128, ".weight_scale_inv", DType.BF16, 2),
        "fp8 block 128x128" + act + 128,
        130,
        7,
        16);
    add(
        "fp8 blocks, ue8m0",
        with(block, "scale_fmt", "ue8m0"),
        fp8(128, 128, ".weight_scale_inv", DType.F8_E8M0, 2),
        "fp8 block 128x128 scales E8M0, activations fp8 dynamic per group e8m0 128",
        136,
        144,
        2);
    add(
        "fp8 blocks of deepseek_v4",
        with(block, "scale_fmt", "ue8m0"),
        fp8(128, 128, ".scale", DType.F8_E8M0, 2),
        "fp8 block 128x128 scales E8M0, activations fp8 dynamic per group e8m0 128",
        136,
        144,
        2);
    add(
        "fp8 other blocks",
        weights("quant_method", "fp8", "weight_block_size", List.of(16, 32)),
        fp8(16, 32, ".weight_scale_inv", DType.F32, 2),
        "fp8 block 16x32" + act + 32,
        40,
        24,
        2);
    add(
        "fp8 a tensor, no dimension",
        weights("quant_method", "fp8"),
        fp8(0, 0, ".weight_scale", DType.F32, 0),
        "fp8 per tensor, activations fp8 dynamic per token",
        37,
        13,
        2);
    add(
        "fp8 a tensor, one dimension",
        weights("quant_method", "fp8", "activation_scheme", "static"),
        fp8(0, 0, ".weight_scale", DType.F32, 1),
        "fp8 per tensor, activations fp8 static",
        37,
        13,
        2);
    add(
        "fbgemm_fp8",
        weights("quant_method", "fbgemm_fp8"),
        fp8(1, 0, ".weight_scale", DType.F32, 2),
        "fp8 per channel, activations fp8 dynamic per token");
    add(
        "modelopt FP8",
        weights("quant_method", "modelopt", "quant_algo", "FP8"),
        fp8(0, 0, ".weight_scale", DType.F32, 0),
        "fp8 per tensor, activations fp8 static");
    add(
        "modelopt FP8 a channel",
        weights("quant_method", "modelopt", "quant_algo", "FP8_PER_CHANNEL_PER_TOKEN"),
        fp8(1, 0, ".weight_scale", DType.F32, 1),
        "fp8 per channel, activations fp8 dynamic per token");
    add(
        "modelopt FP8 in blocks",
        weights("quant_method", "modelopt", "quant_algo", "FP8_PB_WO"),
        fp8(128, 128, ".weight_scale", DType.F32, 2),
        "fp8 block 128x128",
        200,
        144,
        2);
    add(
        "modelopt mixed",
        weights(
            "quant_method",
            "modelopt",
            "quant_algo",
            "MIXED_PRECISION",
            "quantized_layers",
            Map.of(
                "model.layers.0.mlp.experts",
                Map.of("quant_algo", "W4A16_NVFP4", "group_size", 16))),
        nvfp4(true),
        "nvfp4");
  }

  @TestFactory
  Stream<DynamicTest> variants() {
    gptqVariants();
    compressedTensorsVariants();
    fp8Variants();
    assertThat(variants).hasSizeGreaterThan(55);
    return variants.entrySet().stream()
        .map(v -> DynamicTest.dynamicTest(v.getKey(), () -> check(v.getKey(), v.getValue())));
  }

  private void check(String name, Variant v) {
    int[] s = v.sizes();
    TinyQuantised t = new TinyQuantised(s[0], s[1], s[2], name.hashCode());
    t.experts(v.format()).config(v.config());
    Path at = t.file.writeModel(dir.resolve("m" + Math.abs(name.hashCode())));
    try (MoeCheckpoint c = MoeCheckpoint.open(at)) {
      assertThat(c.config(0).quantSchemes())
          .extracting(Object::toString)
          .containsExactly(v.scheme());
      requireExpected(t, c);
    }
  }

  /** Codes are views of the file, and stand for what was packed. */
  private static void requireExpected(TinyQuantised t, MoeCheckpoint c) {
    List<ExpertWeights.Expert> experts = c.weights(0).experts().experts();
    assertThat(experts).hasSize(t.e);
    for (int x = 0; x < t.e; x++) {
      String name = "experts." + x + ".";
      ExpertWeights.Expert e = experts.get(x);
      requireExpected(e.gate(), t.expected.get(name + "gate_proj"), c);
      requireExpected(e.up(), t.expected.get(name + "up_proj"), c);
      requireExpected(e.down(), t.expected.get(name + "down_proj"), c);
    }
  }

  private static void requireExpected(Weight w, double[][] expected, MoeCheckpoint c) {
    assertThat(c.tensors().values()).anyMatch(t -> t.memory().equals(w.values().memory()));
    double[][] actual = Dequantize.all(w);
    Weight copy = w.toPlain(DType.F32);
    assertThat(actual.length).isEqualTo(expected.length);
    for (int o = 0; o < expected.length; o++) {
      assertThat(actual[o]).as(w + " row " + o).hasSameSizeAs(expected[o]);
      for (int i = 0; i < expected[o].length; i++) {
        assertThat(actual[o][i])
            .as("%s [%d, %d]", w, o, i)
            .isCloseTo(expected[o][i], within(Math.abs(expected[o][i]) * 1e-12));
        assertThat(copy.plain().get(o, i)).isEqualTo((float) actual[o][i]);
      }
    }
  }

  @Test
  void severalFormatsInOneLayer() {
    TinyQuantised t = new TinyQuantised(64, 32, 4, 5);
    Format int4 = words(4, 32, true, false, DType.I64, DType.BF16);
    Format fp8 = fp8(1, 0, ".weight_scale", DType.BF16, 2);
    Format fp4 = nvfp4(false);
    Format bf16 = plain(DType.BF16);
    t.expert(0, int4, int4, fp8)
        .expert(1, fp8, bf16, int4)
        .expert(2, bf16, bf16, bf16)
        .expert(3, fp4, fp4, fp4);
    Map<String, Object> groups = new LinkedHashMap<>();
    groups.put(
        "a",
        Map.of(
            "targets",
            List.of("re:.*experts\\.3\\."),
            "format",
            "nvfp4-pack-quantized",
            "weights",
            weights("num_bits", 4, "type", "float", "strategy", "tensor_group", "group_size", 16)));
    groups.put(
        "b",
        Map.of(
            "targets",
            List.of("re:.*experts\\.0\\.down_proj$", "model.layers.0.mlp.experts.1.gate_proj"),
            "format",
            "float-quantized",
            "weights",
            weights("num_bits", 8, "type", "float", "strategy", "channel")));
    groups.put(
        "c",
        Map.of(
            "targets",
            List.of("Linear"),
            "format",
            "pack-quantized",
            "weights",
            weights("num_bits", 4, "type", "int", "group_size", 32)));
    t.config(
        Map.of(
            "quant_method",
            "compressed-tensors",
            "format",
            "mixed-precision",
            "config_groups",
            groups));
    try (MoeCheckpoint c = MoeCheckpoint.open(t.file.writeModel(dir))) {
      assertThat(c.config(0).quantSchemes())
          .containsExactly(
              QuantScheme.int4(32),
              QuantScheme.builder(QuantScheme.Format.FP8).perChannel().build(),
              QuantScheme.NONE,
              QuantScheme.NVFP4);
      assertThat(c.config(0).weightDtype()).isEqualTo(DType.BF16);
      requireExpected(t, c);
      assertThat(c.describe().layers().getFirst().weights())
          .extracting(w -> w.part() + " " + w.format() + " x" + w.maps())
          .containsExactly(
              "experts int4 group 32 x3",
              "experts fp8 per channel x2",
              "experts BF16 x4",
              "experts nvfp4 x3",
              "router BF16 x1");
    }
  }
}
