package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;
import io.moe4j.checkpoint.QuantRule.Codes;
import io.moe4j.checkpoint.QuantRule.Method;
import io.moe4j.checkpoint.QuantRule.Strategy;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;

/**
 * The tensors of one module, quantised or not, and what the config says of it. Taking a tensor
 * marks it as used; what contradicts the config is an error that names both.
 */
final class ModuleTensors {
  /** The names that a static scale of activations has had. */
  private static final List<String> INPUT_SCALES =
      List.of(".input_scale", ".act_scale", ".activation_scale", ".input_global_scale");

  final BlockTensors tensors;
  final DataChecks checks;
  final String name;
  final long out;
  final long in;
  private final QuantConfig config;
  private @Nullable QuantRule known;

  /**
   * @param name of the module below the block
   * @param out outputs by the config
   * @param in inputs by the config
   */
  ModuleTensors(
      BlockTensors tensors, QuantConfig config, DataChecks checks, String name, long out, long in) {
    this.tensors = tensors;
    this.config = config;
    this.checks = checks;
    this.name = name;
    this.out = out;
    this.in = in;
  }

  QuantRule rule() {
    QuantRule rule = known == null ? config.rule(tensors.fullName(name)) : known;
    known = rule;
    return rule;
  }

  boolean has(String key) {
    return tensors.has(name + key);
  }

  boolean isDtype(String key, DType dtype) {
    Tensor t = tensors.find(name + key);
    return t != null && t.dtype() == dtype;
  }

  static Format integer(int bits) {
    return bits == 4 ? Format.INT4 : Format.INT8;
  }

  QuantScheme scheme(Format format, boolean ordered) {
    return rule().scheme(format).symmetric(rule().symmetric()).actOrder(ordered).build();
  }

  long groups() {
    return rule().scheme(Format.INT8).build().scaleColumnCount(in);
  }

  long scaleRows() {
    return rule().scheme(Format.INT8).build().scaleRowCount(out);
  }

  void requireCodes(String key, Codes type) {
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
  @Nullable Tensor index(String key, boolean minusOneIsNone) {
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
  void requireNeutral(String key, Tensor zeros, int bits) {
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
  void requireAll(String key, Tensor t, int value, String words) {
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

  Weight.Builder inputScale(Weight.Builder b) {
    for (String key : INPUT_SCALES) {
      if (has(key)) {
        b.inputScale(take(key));
      }
    }
    return b;
  }

  /** Whatever its shape; who builds the weight checks it. */
  Tensor take(String key) {
    Tensor t = tensors.find(name + key);
    if (t == null) {
      throw bad(key, "is missing; " + rule().inWords());
    }
    tensors.use(name + key);
    return t;
  }

  Tensor take(String key, List<DType> dtypes, long... shape) {
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

  CheckpointException bad(String key, String what) {
    return new CheckpointException(tensors.where() + ": '" + name + key + "' " + what);
  }
}
