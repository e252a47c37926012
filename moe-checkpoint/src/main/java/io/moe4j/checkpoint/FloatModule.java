package io.moe4j.checkpoint;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.config.QuantScheme.ScaleFormat;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import io.moe4j.checkpoint.QuantRule.Strategy;
import java.util.Arrays;
import java.util.List;

/**
 * Modules of 8-bit and 4-bit floats: DeepSeek-V3's {@code weight_scale_inv}, compressed-tensors,
 * NVIDIA's modelopt, MXFP4, MXFP8 and NVFP4.
 */
final class FloatModule {
  /** The names that the scale of FP8 weights has had. */
  static final List<String> SCALES = List.of(".weight_scale_inv", ".weight_scale", ".scale");

  private final ModuleTensors m;
  private final String name;
  private final long out;
  private final long in;

  FloatModule(ModuleTensors m) {
    this.m = m;
    this.name = m.name;
    this.out = m.out;
    this.in = m.in;
  }

  Weight fp8() {
    m.requireCodes(".weight", Codes.FLOAT);
    QuantRule rule = m.rule();
    String key = scaleName();
    Tensor scales = m.tensors.find(name + key);
    m.tensors.use(name + key);
    if (scales == null) {
      throw m.bad(key, "is missing");
    }
    if (rule.strategy() == Strategy.BLOCK
        && scales.dims() == 4
        && scales.size(1) == 1
        && scales.size(3) == 1) {
      scales = scales.reshape(scales.size(0), scales.size(2));
    }
    boolean powers = powersOfTwo(rule, key, scales);
    if (rule.strategy() == Strategy.UNKNOWN) {
      rule = byShape(rule, key, scales, powers);
    } else {
      requireScales(rule, key, scales);
    }
    QuantScheme scheme =
        rule.scheme(Format.FP8).scaleFormat(powers ? ScaleFormat.E8M0 : ScaleFormat.FLOAT).build();
    Tensor codes = m.take(".weight", List.of(DType.F8_E4M3), out, in);
    return m.inputScale(
            Weight.builder(name, scheme, out, in, codes, Packing.DENSE)
                .scales(powers ? viewAs(DType.F8_E8M0, scales) : scales))
        .build();
  }

  /** Bytes without a dtype of their own can only be exponents, which this method announces. */
  private boolean powersOfTwo(QuantRule rule, String key, Tensor scales) {
    boolean bytes = scales.dtype() == DType.U8;
    if (bytes
        && rule.method() == Method.COMPRESSED_TENSORS
        && rule.scaleFormat() == ScaleFormat.FLOAT) {
      throw m.bad(
          key,
          "is "
              + scales
              + ", bytes that could only be powers of two (scale_dtype torch.uint8), but "
              + rule.inWords()
              + " with scales of a float dtype");
    }
    return bytes || scales.dtype() == DType.F8_E8M0;
  }

  private String scaleName() {
    List<String> present = SCALES.stream().filter(m::has).toList();
    if (present.size() != 1) {
      throw m.bad(
          ".weight",
          "is F8_E4M3, whose scale must be one of "
              + SCALES
              + "; the file has "
              + (present.isEmpty() ? "none" : present.toString())
              + "; "
              + m.rule().inWords());
    }
    return present.getFirst();
  }

  /** A config without sizes: one scale, one an output, or groups of 32 with powers of two. */
  private QuantRule byShape(QuantRule rule, String key, Tensor scales, boolean powers) {
    QuantRule.Builder b = rule.toBuilder();
    if (scales.elementCount() == 1) {
      return b.scales(Strategy.TENSOR).build();
    }
    if (Arrays.equals(scales.shape(), new long[] {out, 1})
        || Arrays.equals(scales.shape(), new long[] {out})) {
      return b.scales(Strategy.CHANNEL).build();
    }
    if (powers && Arrays.equals(scales.shape(), new long[] {out, Math.ceilDiv(in, 32)})) {
      return b.group(32).build();
    }
    throw m.bad(
        key,
        "is "
            + scales
            + " for a weight ["
            + out
            + ", "
            + in
            + "]; without a block size in the config accepted are one number and ["
            + out
            + ", 1]; "
            + rule.inWords()
            + " and has no weight_block_size");
  }

  private void requireScales(QuantRule rule, String key, Tensor scales) {
    QuantScheme scheme = rule.scheme(Format.FP8).build();
    long rows = scheme.scaleRowCount(out);
    long columns = scheme.scaleColumnCount(in);
    boolean fits =
        Arrays.equals(scales.shape(), new long[] {rows, columns})
            || (rows == 1 && columns == 1 && scales.elementCount() == 1)
            || (columns == 1 && Arrays.equals(scales.shape(), new long[] {rows}));
    if (!fits) {
      throw m.bad(
          key,
          "is "
              + scales
              + " for a weight ["
              + out
              + ", "
              + in
              + "], must have shape ["
              + rows
              + ", "
              + columns
              + "]: "
              + rule.inWords());
    }
  }

  Weight fp4(String key, boolean global) {
    m.requireCodes(key, Codes.FLOAT);
    QuantRule rule = m.rule();
    // DeepSeek-V4 has experts in 4 bits beside maps in FP8, and parameters of these only.
    boolean besideFp8 = rule.method() == Method.FP8 && !global;
    if (rule.bits() != 0 && rule.bits() != 4 && !besideFp8) {
      throw m.bad(key, "holds 4-bit floats, but " + rule.inWords());
    }
    if (rule.scaleFormat() != ScaleFormat.FLOAT
        && (rule.scaleFormat() == ScaleFormat.E4M3) != global) {
      throw m.bad(
          key,
          "has "
              + (global ? "a global scale, as NVFP4 has," : "no global scale, as MXFP4 has none,")
              + " but "
              + rule.inWords()
              + " with scales "
              + rule.scaleFormat());
    }
    Tensor codes = codes4(key);
    String scaleKey = m.has(".weight_scale") ? ".weight_scale" : ".scale";
    int group = rule.strategy() == Strategy.GROUP ? rule.columns() : global ? 16 : 32;
    QuantScheme.Builder scheme =
        QuantScheme.builder(Format.FP4).group(group).activations(rule.activations());
    if (global) {
      boolean divided = m.has(".weight_global_scale");
      Tensor factor = m.take(divided ? ".weight_global_scale" : ".weight_scale_2");
      return m.inputScale(
              Weight.builder(
                      name,
                      scheme.scaleFormat(ScaleFormat.E4M3).build(),
                      out,
                      in,
                      codes,
                      Packing.DENSE)
                  .scales(m.take(".weight_scale"))
                  .globalScale(factor, divided))
          .build();
    }
    Tensor scales = m.take(scaleKey);
    boolean powers = powersOfTwo(rule, scaleKey, scales);
    return m.inputScale(
            Weight.builder(
                    name,
                    scheme.scaleFormat(powers ? ScaleFormat.E8M0 : ScaleFormat.FLOAT).build(),
                    out,
                    in,
                    codes,
                    Packing.DENSE)
                .scales(powers ? viewAs(DType.F8_E8M0, scales) : scales))
        .build();
  }

  /** Two to a byte, or said to be what they are. */
  private Tensor codes4(String key) {
    Tensor t = m.tensors.find(name + key);
    if (t != null && t.dtype() == DType.F4) {
      return m.take(key, List.of(DType.F4), out, in);
    }
    if (in % 2 != 0) {
      throw m.bad(key, "is " + t + ", two codes to a byte, but the weight has " + in + " inputs");
    }
    Tensor bytes = m.take(key, List.of(DType.U8, DType.I8), out, in / 2);
    return Tensor.strided(
        DType.F4, bytes.memory(), bytes.byteOffset(), new long[] {out, in}, new long[] {in, 1});
  }

  private static Tensor viewAs(DType dtype, Tensor bytes) {
    long[] strides = new long[bytes.dims()];
    Arrays.setAll(strides, bytes::stride);
    return Tensor.strided(dtype, bytes.memory(), bytes.byteOffset(), bytes.shape(), strides);
  }
}
