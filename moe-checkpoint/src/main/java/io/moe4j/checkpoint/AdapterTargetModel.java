package io.moe4j.checkpoint;

import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.config.MoeConfig;
import java.util.Collections;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;

/**
 * What an adapter needs to know of the model it is for: names and sizes, no weights. Usually from
 * {@link MoeCheckpoint#adapterTarget()}.
 *
 * @param layout how the family names its modules
 * @param layers config of each MoE layer by index; sizes of all experts, whatever an expert map
 *     says
 * @param numLayers decoder layers, MoE or not
 */
public record AdapterTargetModel(
    CheckpointLayout layout, Map<Integer, MoeConfig> layers, int numLayers) {
  /**
   * Checks and copies the components.
   *
   * @param layout how the family names its modules
   * @param layers copied
   * @param numLayers at least one more than the last MoE layer's index
   */
  public AdapterTargetModel {
    Objects.requireNonNull(layout, "layout");
    layers = Collections.unmodifiableMap(new TreeMap<>(layers));
    for (int layer : layers.keySet()) {
      if (layer < 0 || layer >= numLayers) {
        throw new IllegalArgumentException(
            "layer " + layer + " is outside the model's " + numLayers + " layers");
      }
    }
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
