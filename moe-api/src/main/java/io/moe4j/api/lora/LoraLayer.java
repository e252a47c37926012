package io.moe4j.api.lora;

import io.moe4j.api.config.MoeConfig;
import java.util.Collections;
import java.util.EnumMap;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What one adapter does to one MoE layer: factors for any subset of the targets, each with a rank
 * of its own. Immutable; the memory belongs to the loader of the adapter.
 *
 * @param factors by target; a missing target has no delta
 * @since 0.1.0
 */
public record LoraLayer(Map<LoraTarget, LoraFactors> factors) {
  /** An adapter that leaves the layer alone. */
  public static final LoraLayer NONE = new LoraLayer(Map.of());

  /**
   * Copies the components.
   *
   * @param factors copied
   */
  public LoraLayer {
    EnumMap<LoraTarget, LoraFactors> copy = new EnumMap<>(LoraTarget.class);
    copy.putAll(factors);
    factors = Collections.unmodifiableMap(copy);
  }

  /**
   * {@return the factors of one target, or null where the adapter does not touch it}
   *
   * @param target the linear map
   */
  public @Nullable LoraFactors get(LoraTarget target) {
    return factors.get(target);
  }

  /** {@return the largest rank, 0 if there are no factors} */
  public int maxRank() {
    return factors.values().stream().mapToInt(LoraFactors::rank).max().orElse(0);
  }

  /**
   * Checks every factor against a layer.
   *
   * @param config the layer's config
   * @throws IllegalArgumentException naming the target, its factors and the expected sizes; or that
   *     LoRA is off, or the rank exceeds {@link io.moe4j.api.config.LoraConfig#maxRank()}
   */
  public void requireFits(MoeConfig config) {
    if (factors.isEmpty()) {
      return;
    }
    int maxRank =
        config
            .lora()
            .orElseThrow(() -> new IllegalArgumentException("the layer's config has LoRA off"))
            .maxRank();
    factors.forEach((target, f) -> {
      int in = inFeatures(target, config);
      int out = outFeatures(target, config);
      if (f.inFeatures() != in || f.outFeatures() != out) {
        throw new IllegalArgumentException(
            target
                + " factors are a "
                + f.a()
                + ", b "
                + f.b()
                + "; this layer maps "
                + in
                + " -> "
                + out);
      }
      int experts = target.isRouted() ? config.numLocalExperts() : 1;
      if (f.numExperts() != experts && f.numExperts() != 1) {
        throw new IllegalArgumentException(
            target + " factors cover " + f.numExperts() + " experts, this layer has " + experts);
      }
      if (f.rank() > maxRank) {
        throw new IllegalArgumentException(
            target + " factors have rank " + f.rank() + ", the layer's maxRank is " + maxRank);
      }
    });
  }

  private static int inFeatures(LoraTarget target, MoeConfig c) {
    return switch (target) {
      case GATE, UP -> c.expertHiddenSize();
      case DOWN -> c.intermediateSize();
      case SHARED_GATE, SHARED_UP, SHARED_EXPERT_GATE, LATENT_IN -> c.hiddenSize();
      case SHARED_DOWN -> sharedIntermediate(target, c);
      case LATENT_OUT -> c.latentSize();
    };
  }

  private static int outFeatures(LoraTarget target, MoeConfig c) {
    return switch (target) {
      case GATE -> {
        if (!c.activation().isGated()) {
          throw new IllegalArgumentException(
              "GATE factors on a layer whose activation has no gate");
        }
        yield c.intermediateSize();
      }
      case UP -> c.intermediateSize();
      case DOWN -> c.expertHiddenSize();
      case SHARED_GATE, SHARED_UP -> sharedIntermediate(target, c);
      case SHARED_DOWN, LATENT_OUT -> c.hiddenSize();
      case SHARED_EXPERT_GATE -> 1;
      case LATENT_IN -> c.latentSize();
    };
  }

  private static int sharedIntermediate(LoraTarget target, MoeConfig c) {
    return c.sharedExpert()
        .orElseThrow(() ->
            new IllegalArgumentException(target + " factors on a layer without shared expert"))
        .intermediateSize();
  }
}
