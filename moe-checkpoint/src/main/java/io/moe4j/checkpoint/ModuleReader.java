package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;

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
    ModuleTensors m = new ModuleTensors(tensors, config, checks, module, out, in);
    Weight w = read(m);
    if (!w.isPlain()) {
      leaveOutBias(m);
    }
    return w;
  }

  private Weight read(ModuleTensors m) {
    if (m.has(".qweight")) {
      return switch (m.rule().method()) {
        case GPTQ -> new IntegerModule(m).gptq();
        case AWQ -> new IntegerModule(m).awq();
        default ->
            throw m.bad(
                ".qweight", "is of GPTQ or AWQ, but " + m.rule().inWords() + " is of neither");
      };
    }
    Tensor packed = tensors.find(m.name + ".weight_packed");
    if (packed != null) {
      return packed.dtype() == DType.I32
          ? new IntegerModule(m).words()
          : new FloatModule(m)
              .fp4(
                  ".weight_packed",
                  m.has(".weight_global_scale") || m.isDtype(".weight_scale", DType.F8_E4M3));
    }
    Tensor weight = tensors.find(m.name + ".weight");
    if (weight == null) {
      requireNoParts(m);
    }
    boolean scaled = FloatModule.SCALES.stream().anyMatch(m::has);
    DType dtype = weight == null || !scaled ? DType.BF16 : weight.dtype();
    return switch (dtype) {
      case F8_E4M3 -> new FloatModule(m).fp8();
      case I8 ->
          m.has(".scale") ? new FloatModule(m).fp4(".weight", false) : new IntegerModule(m).int8();
      case U8, F4 -> new FloatModule(m).fp4(".weight", m.has(".weight_scale_2"));
      default ->
          Weight.plain(
              m.name + ".weight", floats(m, tensors.take(m.name + ".weight", m.out, m.in)));
    };
  }

  private static void requireNoParts(ModuleTensors m) {
    for (String part : QuantisedNames.parts()) {
      if (m.has("." + part)) {
        throw m.bad(
            ".weight",
            "is missing beside '." + part + "' of a quantised module; " + m.rule().inWords());
      }
    }
  }

  /** Some writers of quantised files give every module a bias of zeros. */
  private void leaveOutBias(ModuleTensors m) {
    Tensor bias = tensors.find(m.name + ".bias");
    if (bias != null
        && BlockTensors.isFloating(bias)
        && Arrays.equals(bias.shape(), new long[] {m.out})
        && Arrays.stream(bias.toDoubles()).allMatch(v -> v == 0)) {
      tensors.use(m.name + ".bias");
    }
  }

  private Tensor floats(ModuleTensors m, Tensor t) {
    if (!BlockTensors.isFloating(t)) {
      throw new CheckpointException(
          tensors.where()
              + ": '"
              + m.name
              + ".weight' is "
              + t
              + (t.dtype().bits() == Byte.SIZE
                  ? " with none of the scales " + FloatModule.SCALES + " beside it"
                  : "")
              + config.said().map(q -> ", by the config " + q).orElse("")
              + LayerReader.ACCEPTED);
    }
    return t;
  }
}
