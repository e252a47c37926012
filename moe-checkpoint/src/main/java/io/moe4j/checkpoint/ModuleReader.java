package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
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
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Reads linear maps, quantised or not: a module is what its tensors are, whatever lists the config
 * has; the config says what the tensors cannot (bits, groups, symmetry), and one that contradicts
 * them is an error that names both. Codes stay where they lie; transposed files are read through
 * transposed views.
 *
 * <p>The formats are described by their writers: GPTQModel, AutoAWQ, compressed-tensors,
 * DeepSeek-V3's {@code weight_scale_inv}, NVIDIA's modelopt.
 */
final class ModuleReader {
  private static final List<String> FLOAT_SCALES =
      List.of(".weight_scale_inv", ".weight_scale", ".scale");

  /** The names that a static scale of activations has had. */
  private static final List<String> INPUT_SCALES =
      List.of(".input_scale", ".act_scale", ".activation_scale", ".input_global_scale");

  private final BlockTensors tensors;
  private final QuantConfig config;
  private final DataChecks checks;
  private final WeightParts parts;

  ModuleReader(BlockTensors tensors, QuantConfig config, DataChecks checks, WeightParts parts) {
    this.tensors = tensors;
    this.config = config;
    this.checks = checks;
    this.parts = parts;
  }

  /** Whether the files have a module in any form. */
  boolean has(String module) {
    return tensors.has(module + ".weight")
        || tensors.has(module + ".qweight")
        || tensors.has(module + ".weight_packed");
  }

  /** The outputs of a module by its tensors; empty if they do not tell. */
  Optional<Long> outputs(String module) {
    for (String rows : List.of(".weight", ".weight_packed")) {
      Tensor t = tensors.find(module + rows);
      if (t != null) {
        return t.dims() == 2 ? Optional.of(t.size(0)) : Optional.empty();
      }
    }
    Tensor scales = tensors.find(module + ".scales");
    return scales != null && scales.dims() == 2 ? Optional.of(scales.size(1)) : Optional.empty();
  }

  /**
   * A module as floats: as they lie, or, of a quantised one, a copy in F32.
   *
   * @param part of the block, for descriptions
   */
  Tensor plain(String part, String module, long out, long in) {
    Weight w = read(module, out, in);
    parts.add(part, w);
    return w.isPlain() ? w.plain() : w.toPlain(DType.F32).plain();
  }

  /**
   * A module as it is.
   *
   * @param module its name below the block
   * @param out outputs by the config
   * @param in inputs by the config
   */
  Weight read(String module, long out, long in) {
    Module m = new Module(module, out, in);
    Weight w = m.read();
    if (!w.isPlain()) {
      m.leaveOutBias();
    }
    return w;
  }

  /** One of them. */
  private final class Module {
    private final String name;
    private final long out;
    private final long in;
    private @Nullable QuantRule known;

    Module(String name, long out, long in) {
      this.name = name;
      this.out = out;
      this.in = in;
    }

    private QuantRule rule() {
      QuantRule rule = known == null ? config.rule(tensors.fullName(name)) : known;
      known = rule;
      return rule;
    }

    Weight read() {
      if (has(".qweight")) {
        return switch (rule().method()) {
          case GPTQ -> gptq();
          case AWQ -> awq();
          default ->
              throw bad(
                  ".qweight", "is of GPTQ or AWQ, but " + rule().inWords() + " is of neither");
        };
      }
      Tensor packed = tensors.find(name + ".weight_packed");
      if (packed != null) {
        return packed.dtype() == DType.I32
            ? words()
            : fp4(
                ".weight_packed",
                has(".weight_global_scale") || isDtype(".weight_scale", DType.F8_E4M3));
      }
      Tensor weight = tensors.find(name + ".weight");
      if (weight == null) {
        requireNoParts();
      }
      boolean scaled = FLOAT_SCALES.stream().anyMatch(this::has);
      DType dtype = weight == null || !scaled ? DType.BF16 : weight.dtype();
      return switch (dtype) {
        case F8_E4M3 -> fp8();
        case I8 -> has(".scale") ? fp4(".weight", false) : int8();
        case U8, F4 -> fp4(".weight", has(".weight_scale_2"));
        default -> Weight.plain(name + ".weight", floats(tensors.take(name + ".weight", out, in)));
      };
    }

    private void requireNoParts() {
      for (String part : QuantisedNames.parts()) {
        if (has("." + part)) {
          throw bad(
              ".weight",
              "is missing beside '." + part + "' of a quantised module; " + rule().inWords());
        }
      }
    }

    // ------------------------------------------------------------------------------ GPTQ, AWQ

    private Weight gptq() {
      QuantRule rule = rule();
      int bits = rule.bits();
      long groups = groups();
      Tensor codes =
          take(".qweight", List.of(DType.I32), Math.ceilDiv(in * bits, Integer.SIZE), out);
      Tensor scales = take(".scales", List.of(DType.F16, DType.BF16, DType.F32), groups, out);
      Tensor index = index(".g_idx", false);
      Weight.Builder b =
          Weight.builder(
                  name,
                  scheme(integer(bits), index != null),
                  out,
                  in,
                  codes.transpose(0, 1),
                  Packing.WORDS_ALONG_IN)
              .scales(scales.transpose(0, 1));
      if (!rule.symmetric() || has(".qzeros")) {
        Tensor zeros =
            take(".qzeros", List.of(DType.I32), groups, Math.ceilDiv(out * bits, Integer.SIZE))
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
      checks.add(
          zeros.elementCount() * Integer.BYTES,
          () -> {
            int perWord = Integer.SIZE / bits;
            int largest = (1 << bits) - 1;
            for (long w = 0; w < zeros.size(0); w++) {
              for (long g = 0; g < zeros.size(1); g++) {
                int word = (int) zeros.get(w, g);
                for (int f = 0; f < perWord && w * perWord + f < out; f++) {
                  if ((word >>> (f * bits) & largest) == largest) {
                    throw bad(
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

    private Weight awq() {
      QuantRule rule = rule();
      long groups = groups();
      if (out % 8 != 0 || (rule.strategy() == Strategy.GROUP && in % rule.columns() != 0)) {
        throw bad(
            ".qweight",
            "is of a weight ["
                + out
                + ", "
                + in
                + "]; AWQ needs a multiple of 8 outputs and whole groups, and "
                + rule.inWords());
      }
      Tensor codes = take(".qweight", List.of(DType.I32), in, out / 8);
      Tensor scales = take(".scales", List.of(DType.F16, DType.BF16, DType.F32), groups, out);
      boolean stored = has(".qzeros");
      if (!stored && !rule.symmetric()) {
        throw bad(".qzeros", "is missing, but " + rule.inWords());
      }
      Weight.Builder b =
          Weight.builder(
                  name,
                  scheme(Format.INT4, false),
                  out,
                  in,
                  codes.transpose(0, 1),
                  Packing.WORDS_ALONG_OUT_AWQ)
              .scales(scales.transpose(0, 1));
      if (stored) {
        Tensor zeros = take(".qzeros", List.of(DType.I32), groups, out / 8).transpose(0, 1);
        if (rule.symmetric()) {
          requireNeutral(".qzeros", zeros, 4);
        } else {
          b.zeroPoints(zeros, Packing.WORDS_ALONG_OUT_AWQ, 0);
        }
      }
      return b.build();
    }

    // --------------------------------------------------------------- compressed-tensors integers

    private Weight words() {
      QuantRule rule = rule();
      requireCodes(".weight_packed", Codes.INT);
      int bits = rule.bits();
      if (bits != 4 && bits != 8) {
        throw bad(".weight_packed", "is of " + rule.inWords() + "; accepted are 4 and 8 bits");
      }
      requireWeightShape();
      Tensor codes =
          take(".weight_packed", List.of(DType.I32), out, Math.ceilDiv(in * bits, Integer.SIZE));
      Tensor index = rule.strategy() == Strategy.GROUP ? index(".weight_g_idx", true) : null;
      Weight.Builder b =
          Weight.builder(
                  name,
                  scheme(integer(bits), index != null),
                  out,
                  in,
                  codes,
                  Packing.WORDS_ALONG_IN)
              .scales(take(".weight_scale"));
      zeroPoints(b, bits);
      if (index != null) {
        b.groupIndex(index);
      }
      return b.build();
    }

    private void requireWeightShape() {
      Tensor shape = tensors.find(name + ".weight_shape");
      if (shape == null) {
        return;
      }
      boolean integers = shape.dtype() == DType.I32 || shape.dtype() == DType.I64;
      double[] sizes = shape.elementCount() == 2 && integers ? shape.toDoubles() : new double[0];
      if (!Arrays.equals(sizes, new double[] {out, in})) {
        throw bad(
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
      tensors.use(name + ".weight_shape");
    }

    /** Packed words, or, by some writers, a signed number a group in a tensor like the scales. */
    private void zeroPoints(Weight.Builder b, int bits) {
      String key = ".weight_zero_point";
      Tensor zeros = tensors.find(name + key);
      long groups = groups();
      if (zeros == null) {
        if (!rule().symmetric()) {
          throw bad(key, "is missing, but " + rule().inWords());
        }
        return;
      }
      boolean packed = zeros.dtype() == DType.I32;
      if (packed) {
        take(key, List.of(DType.I32), Math.ceilDiv(out * bits, Integer.SIZE), groups);
      } else {
        take(key, List.of(DType.I8, DType.F32, DType.BF16, DType.F16), out, groups);
      }
      if (rule().symmetric()) {
        if (packed) {
          requireNeutral(key, zeros, bits);
        } else {
          requireAll(key, zeros, 0, "0 (symmetric)");
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
          throw bad(
              key, "holds " + values[i] + ", must be whole numbers -" + most + ".." + (most - 1));
        }
        bytes[i] = (byte) values[i];
      }
      return Tensor.of(
          DType.I8, java.lang.foreign.MemorySegment.ofArray(bytes), zeros.size(0), zeros.size(1));
    }

    private Weight int8() {
      QuantRule rule = rule();
      requireCodes(".weight", Codes.INT);
      Tensor codes = take(".weight", List.of(DType.I8), out, in);
      Weight.Builder b =
          Weight.builder(name, scheme(Format.INT8, false), out, in, codes, Packing.DENSE)
              .scales(take(".weight_scale"));
      String key = ".weight_zero_point";
      Tensor zeros = tensors.find(name + key);
      if (zeros != null) {
        take(key, List.of(DType.I8), scaleRows(), groups());
        if (rule.symmetric()) {
          requireAll(key, zeros, 0, "0 (symmetric)");
        } else {
          b.zeroPoints(zeros, Packing.DENSE, 0);
        }
      } else if (!rule.symmetric()) {
        throw bad(key, "is missing, but " + rule.inWords());
      }
      Tensor inputZero = tensors.find(name + ".input_zero_point");
      if (inputZero != null) {
        requireAll(".input_zero_point", inputZero, 0, "0: activations are symmetric here");
        tensors.use(name + ".input_zero_point");
      }
      return inputScale(b).build();
    }

    // ------------------------------------------------------------------------------------ floats

    private Weight fp8() {
      requireCodes(".weight", Codes.FLOAT);
      QuantRule rule = rule();
      String key = scaleName();
      Tensor scales = tensors.find(name + key);
      tensors.use(name + key);
      if (scales == null) {
        throw bad(key, "is missing");
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
          rule.scheme(Format.FP8)
              .scaleFormat(powers ? ScaleFormat.E8M0 : ScaleFormat.FLOAT)
              .build();
      Tensor codes = take(".weight", List.of(DType.F8_E4M3), out, in);
      return inputScale(
              Weight.builder(name, scheme, out, in, codes, Packing.DENSE)
                  .scales(powers ? viewAs(DType.F8_E8M0, scales) : scales))
          .build();
    }

    /** Bytes without a dtype of their own can only be exponents, which this method announces. */
    private boolean powersOfTwo(QuantRule rule, String key, Tensor scales) {
      boolean bytes = scales.dtype() == DType.U8;
      if (bytes
          && rule.method() == QuantRule.Method.COMPRESSED_TENSORS
          && rule.scaleFormat() == ScaleFormat.FLOAT) {
        throw bad(
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
      List<String> present = FLOAT_SCALES.stream().filter(this::has).toList();
      if (present.size() != 1) {
        throw bad(
            ".weight",
            "is F8_E4M3, whose scale must be one of "
                + FLOAT_SCALES
                + "; the file has "
                + (present.isEmpty() ? "none" : present.toString())
                + "; "
                + rule().inWords());
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
      throw bad(
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
        throw bad(
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

    private Weight fp4(String key, boolean global) {
      requireCodes(key, Codes.FLOAT);
      QuantRule rule = rule();
      // DeepSeek-V4 has experts in 4 bits beside maps in FP8, and parameters of these only.
      boolean besideFp8 = rule.method() == Method.FP8 && !global;
      if (rule.bits() != 0 && rule.bits() != 4 && !besideFp8) {
        throw bad(key, "holds 4-bit floats, but " + rule.inWords());
      }
      if (rule.scaleFormat() != ScaleFormat.FLOAT
          && (rule.scaleFormat() == ScaleFormat.E4M3) != global) {
        throw bad(
            key,
            "has "
                + (global ? "a global scale, as NVFP4 has," : "no global scale, as MXFP4 has none,")
                + " but "
                + rule.inWords()
                + " with scales "
                + rule.scaleFormat());
      }
      Tensor codes = codes4(key);
      String scaleKey = has(".weight_scale") ? ".weight_scale" : ".scale";
      int group = rule.strategy() == Strategy.GROUP ? rule.columns() : global ? 16 : 32;
      QuantScheme.Builder scheme =
          QuantScheme.builder(Format.FP4).group(group).activations(rule.activations());
      if (global) {
        boolean divided = has(".weight_global_scale");
        Tensor factor = take(divided ? ".weight_global_scale" : ".weight_scale_2");
        return inputScale(
                Weight.builder(
                        name,
                        scheme.scaleFormat(ScaleFormat.E4M3).build(),
                        out,
                        in,
                        codes,
                        Packing.DENSE)
                    .scales(take(".weight_scale"))
                    .globalScale(factor, divided))
            .build();
      }
      Tensor scales = take(scaleKey);
      boolean powers = powersOfTwo(rule, scaleKey, scales);
      return inputScale(
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
      Tensor t = tensors.find(name + key);
      if (t != null && t.dtype() == DType.F4) {
        return take(key, List.of(DType.F4), out, in);
      }
      if (in % 2 != 0) {
        throw bad(key, "is " + t + ", two codes to a byte, but the weight has " + in + " inputs");
      }
      Tensor bytes = take(key, List.of(DType.U8, DType.I8), out, in / 2);
      return Tensor.strided(
          DType.F4, bytes.memory(), bytes.byteOffset(), new long[] {out, in}, new long[] {in, 1});
    }

    private static Tensor viewAs(DType dtype, Tensor bytes) {
      long[] strides = new long[bytes.dims()];
      Arrays.setAll(strides, bytes::stride);
      return Tensor.strided(dtype, bytes.memory(), bytes.byteOffset(), bytes.shape(), strides);
    }

    // ------------------------------------------------------------------------------------ common

    private boolean has(String key) {
      return tensors.has(name + key);
    }

    private boolean isDtype(String key, DType dtype) {
      Tensor t = tensors.find(name + key);
      return t != null && t.dtype() == dtype;
    }

    private static Format integer(int bits) {
      return bits == 4 ? Format.INT4 : Format.INT8;
    }

    private QuantScheme scheme(Format format, boolean ordered) {
      return rule().scheme(format).symmetric(rule().symmetric()).actOrder(ordered).build();
    }

    private long groups() {
      return rule().scheme(Format.INT8).build().scaleColumnCount(in);
    }

    private long scaleRows() {
      return rule().scheme(Format.INT8).build().scaleRowCount(out);
    }

    private void requireCodes(String key, Codes type) {
      Codes saidType = rule().codes();
      boolean knows = rule().method() != Method.NONE && saidType != Codes.UNKNOWN;
      if (knows && saidType != type) {
        throw bad(
            key,
            "is "
                + tensors.find(name + key)
                + ", codes that are "
                + (type == Codes.INT ? "integers" : "floats")
                + ", but "
                + rule().inWords());
      }
      if (!knows && type == Codes.INT) {
        throw bad(
            key,
            "is "
                + tensors.find(name + key)
                + ", whose bits and groups a config must say; "
                + rule().inWords()
                + " does not");
      }
    }

    /** The group of each input, or null where it is {@code i / g}. */
    private @Nullable Tensor index(String key, boolean minusOneIsNone) {
      QuantRule rule = rule();
      boolean counts = rule.actOrder() && groups() > 1;
      Tensor found = tensors.find(name + key);
      if (found == null) {
        if (counts) {
          throw bad(key, "is missing, but " + rule.inWords());
        }
        return null;
      }
      Tensor index = take(key, List.of(DType.I32), in);
      int size = rule.strategy() == Strategy.GROUP ? rule.columns() : Integer.MAX_VALUE;
      GroupIndex read = new GroupIndex(index, size);
      if (counts) {
        return read.isTrivial() || (minusOneIsNone && read.isNone()) ? null : index;
      }
      checks.add(
          in * Integer.BYTES,
          () -> {
            if (!read.isTrivial() && !(minusOneIsNone && read.isNone())) {
              throw bad(
                  key,
                  "sorts inputs into groups otherwise than by "
                      + (size == Integer.MAX_VALUE ? "one group" : "i / " + size)
                      + ", but "
                      + rule.inWords());
            }
          });
      return null;
    }

    /** Every field of words along the outputs is what symmetric codes have. */
    private void requireNeutral(String key, Tensor zeros, int bits) {
      int neutral = bits == 4 ? 0x88888888 : 0x80808080;
      int perWord = Integer.SIZE / bits;
      for (long w = 0; w < zeros.size(0); w++) {
        long fields = Math.min(perWord, out - w * perWord);
        int mask = fields == perWord ? -1 : (1 << (fields * bits)) - 1;
        for (long g = 0; g < zeros.size(1); g++) {
          if (((int) zeros.get(w, g) & mask) != (neutral & mask)) {
            throw bad(
                key,
                "holds other zero points than "
                    + (1 << (bits - 1))
                    + ", which would change the result, but "
                    + rule().inWords());
          }
        }
      }
    }

    /** Every element has one value. */
    private void requireAll(String key, Tensor t, int value, String words) {
      for (double v : t.toDoubles()) {
        if (v != value) {
          throw bad(
              key,
              "holds other zero points than "
                  + words
                  + ", which would change the result; "
                  + rule().inWords());
        }
      }
    }

    private Weight.Builder inputScale(Weight.Builder b) {
      for (String key : INPUT_SCALES) {
        if (has(key)) {
          b.inputScale(take(key));
        }
      }
      return b;
    }

    /** Some writers of quantised files give every module a bias of zeros. */
    void leaveOutBias() {
      Tensor bias = tensors.find(name + ".bias");
      if (bias != null
          && BlockTensors.isFloating(bias)
          && Arrays.equals(bias.shape(), new long[] {out})
          && Arrays.stream(bias.toDoubles()).allMatch(v -> v == 0)) {
        tensors.use(name + ".bias");
      }
    }

    private Tensor floats(Tensor t) {
      if (!BlockTensors.isFloating(t)) {
        throw new CheckpointException(
            tensors.where()
                + ": '"
                + name
                + ".weight' is "
                + t
                + (t.dtype().bits() == Byte.SIZE
                    ? " with none of the scales " + FLOAT_SCALES + " beside it"
                    : "")
                + config.said().map(q -> ", by the config " + q).orElse("")
                + LayerReader.ACCEPTED);
      }
      return t;
    }

    /** Whatever its shape; who builds the weight checks it. */
    private Tensor take(String key) {
      Tensor t = tensors.find(name + key);
      if (t == null) {
        throw bad(key, "is missing; " + rule().inWords());
      }
      tensors.use(name + key);
      return t;
    }

    private Tensor take(String key, List<DType> dtypes, long... shape) {
      Tensor t = take(key);
      if (!dtypes.contains(t.dtype()) || !Arrays.equals(t.shape(), shape)) {
        throw bad(
            key,
            "is "
                + t
                + ", must be "
                + String.join(" or ", dtypes.stream().map(DType::name).toList())
                + " of shape "
                + Arrays.toString(shape)
                + " for a weight ["
                + out
                + ", "
                + in
                + "]; "
                + rule().inWords());
      }
      return t;
    }

    private CheckpointException bad(String key, String what) {
      return new CheckpointException(tensors.where() + ": '" + name + key + "' " + what);
    }
  }
}
