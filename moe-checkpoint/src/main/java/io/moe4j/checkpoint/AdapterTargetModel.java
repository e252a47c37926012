package io.moe4j.checkpoint;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import java.util.Collections;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;

/**
 * What an adapter needs to know of the model it is for: names and sizes, no weights. Usually from
 * {@link MoeCheckpoint#adapterTarget()}.
 *
 * @param layout how the family names its modules
 * @param layers config of each MoE layer by index; sizes of all experts, whatever an expert map
 *     says
 * @param numLayers decoder layers, MoE or not
 * @param predictionLayers layers behind those for multi-token prediction, which are not computed;
 *     what an adapter has for them is left out
 * @param root what precedes the layers in the names of the model's files, empty or ending in a dot;
 *     an empty optional where it is not known
 * @param otherRoots roots of other towers with MoE layers in the same files (a draft head, the
 *     talker of an omni model); what an adapter has for them is left out
 */
public record AdapterTargetModel(
    CheckpointLayout layout,
    Map<Integer, MoeConfig> layers,
    int numLayers,
    int predictionLayers,
    Optional<String> root,
    Set<String> otherRoots) {
  /**
   * Checks and copies the components.
   *
   * @param layout how the family names its modules
   * @param layers copied
   * @param numLayers at least one more than the last MoE layer's index
   * @param predictionLayers at least 0
   * @param root of this model, or empty
   * @param otherRoots copied
   */
  public AdapterTargetModel {
    Objects.requireNonNull(layout, "layout");
    Objects.requireNonNull(root, "root");
    layers = Collections.unmodifiableMap(new TreeMap<>(layers));
    otherRoots = Collections.unmodifiableSet(new TreeSet<>(otherRoots));
    for (int layer : layers.keySet()) {
      if (layer < 0 || layer >= numLayers) {
        throw new IllegalArgumentException(
            "layer " + layer + " is outside the model's " + numLayers + " layers");
      }
    }
    if (predictionLayers < 0) {
      throw new IllegalArgumentException(
          "predictionLayers is " + predictionLayers + ", must be at least 0");
    }
  }

  /**
   * A model without prediction layers, alone in its files.
   *
   * @param layout how the family names its modules
   * @param layers config of each MoE layer by index
   * @param numLayers at least one more than the last MoE layer's index
   */
  public AdapterTargetModel(
      CheckpointLayout layout, Map<Integer, MoeConfig> layers, int numLayers) {
    this(layout, layers, numLayers, 0, Optional.empty(), Set.of());
  }

  /** The config of a MoE layer. */
  MoeConfig layer(int layer) {
    MoeConfig config = layers.get(layer);
    if (config == null) {
      throw new IllegalStateException("layer " + layer + " is no MoE layer");
    }
    return config;
  }

  /** How gate and up share the rows of a fused parameter. */
  GateUpLayout gateUp() {
    for (ExpertForm form : layout.forms()) {
      if (form instanceof ExpertForm.Stacked stacked) {
        return stacked.gateUp();
      }
    }
    return GateUpLayout.HALVES;
  }
}
