package io.moe4j.checkpoint;

import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.jspecify.annotations.NullUnmarked;

/**
 * A qwen3_moe checkpoint of one layer whose maps are quantised in any way, and the numbers that
 * they stand for, worked out while the codes are packed. Packs by its own rules, not by those that
 * the library reads by.
 */
@NullUnmarked // a missing value fails the test where it is used
final class TinyQuantised {
  static final String BLOCK = "model.layers.0.mlp.";
  private static final double[] E2M1 = {0, .5, 1, 1.5, 2, 3, 4, 6};
  private static final int[] AWQ_ORDER = {0, 2, 4, 6, 1, 3, 5, 7};

  final TinyCheckpoint file = new TinyCheckpoint();

  /** Module below the block to its numbers, {@code [out][in]}. */
  final Map<String, double[][]> expected = new LinkedHashMap<>();

  final int h;
  final int i;
  final int e;
  final Random random;

  /** Adds one map. */
  interface Format {
    void add(TinyQuantised to, String module, int out, int in);
  }

  TinyQuantised(int h, int i, int e, long seed) {
    this.h = h;
    this.i = i;
    this.e = e;
    this.random = new Random(seed);
    file.with("model_type", "qwen3_moe")
        .with("hidden_size", h)
        .with("moe_intermediate_size", i)
        .with("num_experts", e)
        .with("num_experts_per_tok", Math.min(2, e))
        .with("num_hidden_layers", 1)
        .with("hidden_act", "silu")
        .with("norm_topk_prob", true)
        .with("mlp_only_layers", List.of());
    file.put(BLOCK + "gate.weight", DType.BF16, e, h);
  }

  /** All experts in one format. */
  TinyQuantised experts(Format format) {
    for (int x = 0; x < e; x++) {
      expert(x, format, format, format);
    }
    return this;
  }

  TinyQuantised expert(int x, Format gate, Format up, Format down) {
    String name = "experts." + x + ".";
    gate.add(this, name + "gate_proj", i, h);
    up.add(this, name + "up_proj", i, h);
    down.add(this, name + "down_proj", h, i);
    return this;
  }

  TinyQuantised config(Map<String, Object> quantization) {
    file.with("quantization_config", quantization);
    return this;
  }

  private void put(String module, String key, Tensor t) {
    file.tensors.put(BLOCK + module + key, t);
  }

  private static Tensor empty(DType dtype, int... shape) {
    long[] sizes = IntStream.of(shape).asLongStream().toArray();
    long count = IntStream.of(shape).asLongStream().reduce(1, Math::multiplyExact);
    return Tensor.of(
        dtype,
        java.lang.foreign.MemorySegment.ofArray(new byte[Math.toIntExact(dtype.byteSize(count))]),
        sizes);
  }

  private static Tensor words(int[][] words) {
    Tensor t = empty(DType.I32, words.length, words[0].length);
    for (int r = 0; r < words.length; r++) {
      for (int c = 0; c < words[r].length; c++) {
        t.set(words[r][c], r, c);
      }
    }
    return t;
  }

  private int[][] codes(int rows, int columns, int bound) {
    int[][] q = new int[rows][columns];
    for (int[] row : q) {
      for (int c = 0; c < columns; c++) {
        row[c] = random.nextInt(bound);
      }
    }
    return q;
  }

  private double[][] scales(Tensor into) {
    double[][] s = new double[(int) into.size(0)][(int) into.size(1)];
    for (int r = 0; r < s.length; r++) {
      for (int c = 0; c < s[r].length; c++) {
        into.set(0.01 + random.nextDouble() / 16, r, c);
        s[r][c] = into.get(r, c);
      }
    }
    return s;
  }

  private static int[][] transposed(int[][] m) {
    int[][] t = new int[m[0].length][m.length];
    for (int r = 0; r < m.length; r++) {
      for (int c = 0; c < m[r].length; c++) {
        t[c][r] = m[r][c];
      }
    }
    return t;
  }

  /** Packs along columns; the rest of the last word stays 0. */
  private static int[][] packed(int[][] fields, int bits) {
    int per = 32 / bits;
    int[][] w = new int[fields.length][Math.ceilDiv(fields[0].length, per)];
    for (int r = 0; r < fields.length; r++) {
      for (int c = 0; c < fields[r].length; c++) {
        w[r][c / per] |= fields[r][c] << (c % per * bits);
      }
    }
    return w;
  }

  private int[] groups(int in, int group, boolean shuffled) {
    int size = group < 0 ? in : group;
    List<Integer> g = new ArrayList<>();
    for (int c = 0; c < in; c++) {
      g.add(c / size);
    }
    if (shuffled) {
      java.util.Collections.shuffle(g, random);
    }
    return g.stream().mapToInt(Integer::intValue).toArray();
  }

  private static Tensor index(int[] groups) {
    return Tensor.ofInts(groups, groups.length);
  }

  private void expect(String module, int out, int in, Element value) {
    double[][] w = new double[out][in];
    for (int o = 0; o < out; o++) {
      for (int c = 0; c < in; c++) {
        w[o][c] = value.at(o, c);
      }
    }
    expected.put(module, w);
  }

  private interface Element {
    double at(int out, int in);
  }

  // -------------------------------------------------------------------------------------- formats

  static Format plain(DType dtype) {
    return (t, module, out, in) -> {
      Tensor w = TinyCheckpoint.random(module, dtype, out, in);
      t.put(module, ".weight", w);
      t.expect(module, out, in, (o, c) -> w.get(o, c));
    };
  }

  static Map<String, Object> gptqConfig(int bits, int group, boolean sym, String format) {
    Map<String, Object> c = new LinkedHashMap<>();
    c.put("quant_method", "gptq");
    c.put("bits", bits);
    c.put("group_size", group);
    c.put("sym", sym);
    c.put("desc_act", false);
    c.put("checkpoint_format", format);
    return c;
  }

  /**
   * GPTQ.
   *
   * @param stored what is subtracted from a zero point before it is stored: 1 in the first format
   */
  static Format gptq(int bits, int group, boolean sym, boolean shuffled, int stored, DType scale) {
    return (t, module, out, in) -> {
      int n = group < 0 ? 1 : Math.ceilDiv(in, group);
      int[][] q = t.codes(in, out, 1 << bits);
      int[][] z = t.codes(n, out, (1 << bits) - stored);
      Tensor s = empty(scale, n, out);
      double[][] scales = t.scales(s);
      int[] g = t.groups(in, group, shuffled);
      t.put(module, ".qweight", words(transposed(packed(transposed(q), bits))));
      t.put(module, ".qzeros", words(packed(z, bits)));
      t.put(module, ".scales", s);
      t.put(module, ".g_idx", index(g));
      t.expect(
          module,
          out,
          in,
          (o, c) -> (q[c][o] - (sym ? 1 << (bits - 1) : z[g[c]][o] + stored)) * scales[g[c]][o]);
    };
  }

  static Format awq(int group, boolean zeros) {
    return (t, module, out, in) -> {
      int n = group < 0 ? 1 : in / group;
      int[][] q = t.codes(in, out, 16);
      int[][] z = t.codes(n, out, 16);
      Tensor s = empty(DType.F16, n, out);
      double[][] scales = t.scales(s);
      t.put(module, ".qweight", words(packed(awqOrder(q), 4)));
      if (zeros) {
        t.put(module, ".qzeros", words(packed(awqOrder(z), 4)));
      }
      t.put(module, ".scales", s);
      int size = group < 0 ? in : group;
      t.expect(
          module,
          out,
          in,
          (o, c) -> (q[c][o] - (zeros ? z[c / size][o] : 8)) * scales[c / size][o]);
    };
  }

  private static int[][] awqOrder(int[][] fields) {
    int[][] moved = new int[fields.length][fields[0].length];
    for (int r = 0; r < fields.length; r++) {
      for (int c = 0; c < fields[r].length; c++) {
        moved[r][c] = fields[r][c / 8 * 8 + AWQ_ORDER[c % 8]];
      }
    }
    return moved;
  }

  static Map<String, Object> ctConfig(String format, Map<String, Object> weights) {
    Map<String, Object> group = new LinkedHashMap<>();
    group.put("targets", List.of("Linear"));
    group.put("weights", weights);
    Map<String, Object> c = new LinkedHashMap<>();
    c.put("quant_method", "compressed-tensors");
    c.put("format", format);
    c.put("config_groups", new LinkedHashMap<>(Map.of("group_0", group)));
    c.put("ignore", List.of("lm_head"));
    return c;
  }

  static Map<String, Object> weights(Object... keysAndValues) {
    Map<String, Object> w = new LinkedHashMap<>();
    for (int k = 0; k < keysAndValues.length; k += 2) {
      w.put((String) keysAndValues[k], keysAndValues[k + 1]);
    }
    return w;
  }

  /** compressed-tensors integers. */
  static Format words(
      int bits, int group, boolean sym, boolean shuffled, DType shapeType, DType scale) {
    return (t, module, out, in) -> {
      int n = group < 0 ? 1 : Math.ceilDiv(in, group);
      int[][] q = t.codes(out, in, 1 << bits);
      int[][] z = t.codes(out, n, 1 << bits);
      Tensor s = empty(scale, out, n);
      double[][] scales = t.scales(s);
      int[] g = t.groups(in, group, shuffled);
      t.put(module, ".weight_packed", words(packed(q, bits)));
      t.put(module, ".weight_scale", s);
      if (shapeType != null) {
        Tensor shape = empty(shapeType, 2);
        shape.set(out, 0);
        shape.set(in, 1);
        t.put(module, ".weight_shape", shape);
      }
      if (!sym) {
        t.put(module, ".weight_zero_point", words(transposed(packed(transposed(z), bits))));
      }
      if (shuffled) {
        t.put(module, ".weight_g_idx", index(g));
      }
      t.expect(
          module,
          out,
          in,
          (o, c) -> (q[o][c] - (sym ? 1 << (bits - 1) : z[o][g[c]])) * scales[o][g[c]]);
    };
  }

  static Format int8(boolean sym) {
    return (t, module, out, in) -> {
      Tensor w = empty(DType.I8, out, in);
      Tensor z = empty(DType.I8, out, 1);
      Tensor s = empty(DType.BF16, out, 1);
      double[][] scales = t.scales(s);
      for (int o = 0; o < out; o++) {
        z.set(t.random.nextInt(256) - 128, o, 0);
        for (int c = 0; c < in; c++) {
          w.set(t.random.nextInt(256) - 128, o, c);
        }
      }
      t.put(module, ".weight", w);
      t.put(module, ".weight_scale", s);
      if (!sym) {
        t.put(module, ".weight_zero_point", z);
      }
      t.expect(module, out, in, (o, c) -> (w.get(o, c) - (sym ? 0 : z.get(o, 0))) * scales[o][0]);
    };
  }

  /** E4M3 without infinities; 0x7f and 0xff are NaN and left out. */
  private Tensor e4m3(int rows, int columns) {
    Tensor t = empty(DType.F8_E4M3, rows, columns);
    java.lang.foreign.MemorySegment bytes = t.segment();
    for (long b = 0; b < bytes.byteSize(); b++) {
      int code = random.nextInt(256);
      bytes.set(
          java.lang.foreign.ValueLayout.JAVA_BYTE, b, (byte) ((code & 127) == 127 ? 0x30 : code));
    }
    return t;
  }

  static double e4m3(int code) {
    int exponent = code >> 3 & 15;
    double mantissa = code & 7;
    double v =
        exponent == 0
            ? mantissa / 8 * Math.pow(2, -6)
            : (1 + mantissa / 8) * Math.pow(2, exponent - 7);
    return (code & 128) != 0 ? -v : v;
  }

  private static int byteAt(Tensor t, int row, int column) {
    return t.segment().get(java.lang.foreign.ValueLayout.JAVA_BYTE, row * t.size(1) + column) & 255;
  }

  /**
   * FP8.
   *
   * @param rows that share a scale, 0 = all
   * @param columns that share a scale, 0 = all
   * @param key what the scales are called
   * @param shape of a single scale: 0, 1 or 2 dimensions
   */
  static Format fp8(int rows, int columns, String key, DType scale, int shape) {
    return (t, module, out, in) -> {
      Tensor w = t.e4m3(out, in);
      int r = rows == 0 ? out : rows;
      int k = columns == 0 ? in : columns;
      Tensor s = empty(scale, Math.ceilDiv(out, r), Math.ceilDiv(in, k));
      boolean powers = scale == DType.F8_E8M0 || scale == DType.U8;
      double[][] scales = new double[(int) s.size(0)][(int) s.size(1)];
      if (powers) {
        for (int a = 0; a < scales.length; a++) {
          for (int b = 0; b < scales[a].length; b++) {
            int code = 120 + t.random.nextInt(10);
            s.segment()
                .set(java.lang.foreign.ValueLayout.JAVA_BYTE, a * s.size(1) + b, (byte) code);
            scales[a][b] = Math.pow(2, code - 127);
          }
        }
      } else {
        scales = t.scales(s);
      }
      double[][] known = scales;
      t.put(module, ".weight", w);
      t.put(
          module,
          key,
          s.elementCount() == 1 && shape == 0
              ? s.reshape()
              : shape == 1 ? s.reshape(s.elementCount()) : s);
      t.expect(module, out, in, (o, c) -> e4m3(byteAt(w, o, c)) * known[o / r][c / k]);
    };
  }

  private Tensor nibbles(int out, int in) {
    Tensor t = empty(DType.U8, out, in / 2);
    random.nextBytes((byte[]) t.segment().heapBase().orElseThrow());
    return t;
  }

  private static double nibble(Tensor t, int o, int c) {
    int code = byteAt(t, o, c / 2) >> (c % 2 * 4) & 15;
    return (code & 8) != 0 ? -E2M1[code & 7] : E2M1[code & 7];
  }

  static Format nvfp4(boolean modelopt) {
    return (t, module, out, in) -> {
      Tensor w = t.nibbles(out, in);
      Tensor s = t.e4m3(out, in / 16);
      float global =
          modelopt ? 0.001f + t.random.nextFloat() / 64 : 50 + t.random.nextFloat() * 400;
      t.put(module, modelopt ? ".weight" : ".weight_packed", w);
      t.put(module, ".weight_scale", s);
      t.put(
          module,
          modelopt ? ".weight_scale_2" : ".weight_global_scale",
          modelopt
              ? Tensor.ofFloats(new float[] {global})
              : Tensor.ofFloats(new float[] {global}, 1));
      double factor = modelopt ? global : 1.0 / global;
      t.expect(module, out, in, (o, c) -> nibble(w, o, c) * e4m3(byteAt(s, o, c / 16)) * factor);
    };
  }

  static Format mxfp4(String key, String scaleKey, DType codes, DType scale) {
    return (t, module, out, in) -> {
      Tensor w = t.nibbles(out, in);
      Tensor s = empty(scale, out, Math.ceilDiv(in, 32));
      for (int o = 0; o < out; o++) {
        for (int b = 0; b < s.size(1); b++) {
          s.segment()
              .set(
                  java.lang.foreign.ValueLayout.JAVA_BYTE,
                  o * s.size(1) + b,
                  (byte) (118 + t.random.nextInt(10)));
        }
      }
      t.put(module, key, Tensor.of(codes, w.segment(), out, in / 2));
      t.put(module, scaleKey, s);
      t.expect(
          module, out, in, (o, c) -> nibble(w, o, c) * Math.pow(2, byteAt(s, o, c / 32) - 127));
    };
  }
}
