package io.moe4j.checkpoint;

import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Strategy;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;

/**
 * Modules of integers: GPTQ and AWQ as GPTQModel and AutoAWQ write them, and the words and bytes of
 * compressed-tensors.
 */
final class IntegerModule {
  private final ModuleTensors m;
  private final String name;
  private final long out;
  private final long in;

  IntegerModule(ModuleTensors m) {
    this.m = m;
    this.name = m.name;
    this.out = m.out;
    this.in = m.in;
  }

  Weight gptq() {
    QuantRule rule = m.rule();
    int bits = rule.bits();
    long groups = m.groups();
    Tensor codes =
        m.take(".qweight", List.of(DType.I32), Math.ceilDiv(in * bits, Integer.SIZE), out);
    Tensor scales = m.take(".scales", List.of(DType.F16, DType.BF16, DType.F32), groups, out);
    Tensor index = m.index(".g_idx", false);
    Weight.Builder b =
        Weight.builder(
                name,
                m.scheme(m.integer(bits), index != null),
                out,
                in,
                codes.transpose(0, 1),
                Packing.WORDS_ALONG_IN)
            .scales(scales.transpose(0, 1));
    if (!rule.symmetric() || m.has(".qzeros")) {
      Tensor zeros =
          m.take(".qzeros", List.of(DType.I32), groups, Math.ceilDiv(out * bits, Integer.SIZE))
              .transpose(0, 1);
      if (!rule.symmetric()) {
        b.zeroPoints(zeros, Packing.WORDS_ALONG_OUT, rule.zeroOffset());
        requireNoWrappedZero(zeros, bits, rule.zeroOffset());
      }
    }
    if (index != null) {
      b.groupIndex(index);
    }
    return b.build();
  }

  /** GPTQ's first format stores z - 1, and nobody agrees on what the largest field then means. */
  private void requireNoWrappedZero(Tensor zeros, int bits, int offset) {
    if (offset == 0) {
      return;
    }
    m.checks.add(
        zeros.elementCount() * Integer.BYTES,
        () -> {
          int perWord = Integer.SIZE / bits;
          int largest = (1 << bits) - 1;
          for (long w = 0; w < zeros.size(0); w++) {
            for (long g = 0; g < zeros.size(1); g++) {
              int word = (int) zeros.get(w, g);
              for (int f = 0; f < perWord && w * perWord + f < out; f++) {
                if ((word >>> (f * bits) & largest) == largest) {
                  throw m.bad(
                      ".qzeros",
                      "has the zero point "
                          + largest
                          + " stored for output "
                          + (w * perWord + f)
                          + ", group "
                          + g
                          + "; accepted are 0.."
                          + (largest - 1)
                          + " in checkpoint_format gptq, which stores zero points less 1 and has"
                          + " no agreed reading for it (0 or "
                          + (largest + 1)
                          + "); saved as gptq_v2 it has one");
                }
              }
            }
          }
        });
  }

  Weight awq() {
    QuantRule rule = m.rule();
    long groups = m.groups();
    if (out % 8 != 0 || (rule.strategy() == Strategy.GROUP && in % rule.columns() != 0)) {
      throw m.bad(
          ".qweight",
          "is of a weight ["
              + out
              + ", "
              + in
              + "]; AWQ needs a multiple of 8 outputs and whole groups, and "
              + rule.inWords());
    }
    Tensor codes = m.take(".qweight", List.of(DType.I32), in, out / 8);
    Tensor scales = m.take(".scales", List.of(DType.F16, DType.BF16, DType.F32), groups, out);
    boolean stored = m.has(".qzeros");
    if (!stored && !rule.symmetric()) {
      throw m.bad(".qzeros", "is missing, but " + rule.inWords());
    }
    Weight.Builder b =
        Weight.builder(
                name,
                m.scheme(Format.INT4, false),
                out,
                in,
                codes.transpose(0, 1),
                Packing.WORDS_ALONG_OUT_AWQ)
            .scales(scales.transpose(0, 1));
    if (stored) {
      Tensor zeros = m.take(".qzeros", List.of(DType.I32), groups, out / 8).transpose(0, 1);
      if (rule.symmetric()) {
        m.requireNeutral(".qzeros", zeros, 4);
      } else {
        b.zeroPoints(zeros, Packing.WORDS_ALONG_OUT_AWQ, 0);
      }
    }
    return b.build();
  }

  Weight words() {
    QuantRule rule = m.rule();
    m.requireCodes(".weight_packed", Codes.INT);
    int bits = rule.bits();
    if (bits != 4 && bits != 8) {
      throw m.bad(".weight_packed", "is of " + rule.inWords() + "; accepted are 4 and 8 bits");
    }
    requireWeightShape();
    Tensor codes =
        m.take(".weight_packed", List.of(DType.I32), out, Math.ceilDiv(in * bits, Integer.SIZE));
    Tensor index = rule.strategy() == Strategy.GROUP ? m.index(".weight_g_idx", true) : null;
    Weight.Builder b =
        Weight.builder(
                name,
                m.scheme(m.integer(bits), index != null),
                out,
                in,
                codes,
                Packing.WORDS_ALONG_IN)
            .scales(m.take(".weight_scale"));
    zeroPoints(b, bits);
    if (index != null) {
      b.groupIndex(index);
    }
    return b.build();
  }

  private void requireWeightShape() {
    Tensor shape = m.tensors.find(name + ".weight_shape");
    if (shape == null) {
      return;
    }
    boolean integers = shape.dtype() == DType.I32 || shape.dtype() == DType.I64;
    double[] sizes = shape.elementCount() == 2 && integers ? shape.toDoubles() : new double[0];
    if (!Arrays.equals(sizes, new double[] {out, in})) {
      throw m.bad(
          ".weight_shape",
          "is "
              + shape
              + (sizes.length == 2 ? " of values " + Arrays.toString(sizes) : "")
              + ", must be I32 or I64 [2] of values ["
              + out
              + ", "
              + in
              + "], which the config asks for");
    }
    m.tensors.use(name + ".weight_shape");
  }

  /** Packed words, or, by some writers, a signed number a group in a tensor like the scales. */
  private void zeroPoints(Weight.Builder b, int bits) {
    String key = ".weight_zero_point";
    Tensor zeros = m.tensors.find(name + key);
    long groups = m.groups();
    if (zeros == null) {
      if (!m.rule().symmetric()) {
        throw m.bad(key, "is missing, but " + m.rule().inWords());
      }
      return;
    }
    boolean packed = zeros.dtype() == DType.I32;
    if (packed) {
      m.take(key, List.of(DType.I32), Math.ceilDiv(out * bits, Integer.SIZE), groups);
    } else {
      m.take(key, List.of(DType.I8, DType.F32, DType.BF16, DType.F16), out, groups);
    }
    if (m.rule().symmetric()) {
      if (packed) {
        m.requireNeutral(key, zeros, bits);
      } else {
        m.requireAll(key, zeros, 0, "0 (symmetric)");
      }
    } else if (packed) {
      b.zeroPoints(zeros, Packing.WORDS_ALONG_OUT, 0);
    } else {
      b.zeroPoints(signed(key, zeros, bits), Packing.DENSE, 1 << (bits - 1));
    }
  }

  /** A copy in I8: zero points are whole numbers, whatever they are stored as. */
  private Tensor signed(String key, Tensor zeros, int bits) {
    double[] values = zeros.toDoubles();
    byte[] bytes = new byte[values.length];
    int most = 1 << (bits - 1);
    for (int i = 0; i < values.length; i++) {
      if (values[i] != Math.rint(values[i]) || values[i] < -most || values[i] >= most) {
        throw m.bad(
            key, "holds " + values[i] + ", must be whole numbers -" + most + ".." + (most - 1));
      }
      bytes[i] = (byte) values[i];
    }
    return Tensor.of(DType.I8, MemorySegment.ofArray(bytes), zeros.size(0), zeros.size(1));
  }

  Weight int8() {
    QuantRule rule = m.rule();
    m.requireCodes(".weight", Codes.INT);
    Tensor codes = m.take(".weight", List.of(DType.I8), out, in);
    Weight.Builder b =
        Weight.builder(name, m.scheme(Format.INT8, false), out, in, codes, Packing.DENSE)
            .scales(m.take(".weight_scale"));
    String key = ".weight_zero_point";
    Tensor zeros = m.tensors.find(name + key);
    if (zeros != null) {
      m.take(key, List.of(DType.I8), m.scaleRows(), m.groups());
      if (rule.symmetric()) {
        m.requireAll(key, zeros, 0, "0 (symmetric)");
      } else {
        b.zeroPoints(zeros, Packing.DENSE, 0);
      }
    } else if (!rule.symmetric()) {
      throw m.bad(key, "is missing, but " + rule.inWords());
    }
    Tensor inputZero = m.tensors.find(name + ".input_zero_point");
    if (inputZero != null) {
      m.requireAll(".input_zero_point", inputZero, 0, "0: activations are symmetric here");
      m.tensors.use(name + ".input_zero_point");
    }
    return m.inputScale(b).build();
  }
}
