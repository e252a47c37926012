package io.moe4j.api.lora;

import java.util.Collections;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;

/**
 * A loaded adapter: what it does to each MoE layer of a model. Immutable. Factors keep the dtype of
 * the file; the memory lives as long as the garbage collector (or the arena the loader was given)
 * says.
 *
 * @param name the caller's name for it
 * @param layers by layer index of the model; a missing layer is left alone
 * @since 0.1.0
 */
public record LoraAdapter(String name, Map<Integer, LoraLayer> layers) {
  /**
   * Checks and copies the components.
   *
   * @param name not blank
   * @param layers copied
   */
  public LoraAdapter {
    Objects.requireNonNull(name, "name");
    if (name.isBlank()) {
      throw new IllegalArgumentException("adapter name is blank");
    }
    layers = Collections.unmodifiableMap(new TreeMap<>(layers));
  }

  /**
   * {@return what the adapter does to one layer}
   *
   * @param layerIndex index in the model
   */
  public LoraLayer layer(int layerIndex) {
    return layers.getOrDefault(layerIndex, LoraLayer.NONE);
  }

  /** {@return the largest rank of any target of any layer} */
  public int maxRank() {
    return layers.values().stream().mapToInt(LoraLayer::maxRank).max().orElse(0);
  }
}
