package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.tensor.Tensor;
import java.util.List;
import java.util.Optional;

/** The tensors of one MoE block and what is said of them: what its parts are read from. */
final class BlockSource {
  static final String WEIGHT = ".weight";

  final String where;
  final CheckpointLayout layout;
  final ModelConfig modelConfig;
  final int layer;
  final Optional<String> quantised;
  final BlockTensors tensors;
  final DataChecks checks = new DataChecks();
  final WeightParts parts = new WeightParts();
  final ModuleReader modules;

  /**
   * Nothing is read yet.
   *
   * @param layout the family
   * @param modelConfig config.json
   * @param layer layer index
   * @param tensors the block's tensors
   * @param quantised what the config says of quantisation
   */
  BlockSource(
      CheckpointLayout layout,
      ModelConfig modelConfig,
      int layer,
      BlockTensors tensors,
      QuantConfig quantised) {
    this.where = tensors.where();
    this.layout = layout;
    this.modelConfig = modelConfig;
    this.layer = layer;
    this.quantised = quantised.said();
    this.tensors = tensors;
    this.modules = new ModuleReader(tensors, quantised, checks, parts);
  }

  /** For messages about what is missing or not understood. */
  String quantisedNote() {
    Optional<String> kind = QuantisedNames.kind(tensors.names());
    return kind.map(k -> "; what is here looks quantised: " + k).orElse("")
        + quantised.map(q -> "; by its config the model is quantised: " + q).orElse("")
        + (kind.isPresent() || quantised.isPresent() ? LayerReader.ACCEPTED : "");
  }

  static String module(String weight) {
    return weight.endsWith(WEIGHT)
        ? weight.substring(0, weight.length() - WEIGHT.length())
        : weight;
  }

  /** Whether a linear map is in the files, quantised or not. */
  boolean hasMap(String weight) {
    return tensors.has(weight) || (weight.endsWith(WEIGHT) && modules.has(module(weight)));
  }

  /** A linear map as floats. */
  Tensor map(String part, String weight, long out, long in) {
    if (weight.endsWith(WEIGHT)) {
      return modules.plain(part, module(weight), out, in);
    }
    Tensor plain = tensors.takeFloating(weight, out, in);
    parts.add(part, weight, plain);
    return plain;
  }

  CheckpointException lacks(String what, List<String> names) {
    return new CheckpointException(
        where
            + " lacks "
            + what
            + ", which "
            + modelConfig.source()
            + " or its model_type promises; looked for "
            + String.join(", ", names));
  }
}
