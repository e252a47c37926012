package io.moe4j.checkpoint;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SharedExpertConfig;
import io.moe4j.api.lora.LoraTarget;

/** Widths of the linear maps of a block, over all experts and ranks. */
final class TargetSizes {
  private TargetSizes() {}

  static long in(LoraTarget target, MoeConfig c) {
    return switch (target) {
      case GATE, UP -> c.expertHiddenSize();
      case DOWN -> c.intermediateSize();
      case SHARED_GATE, SHARED_UP, SHARED_EXPERT_GATE, LATENT_IN, ROUTER -> c.hiddenSize();
      case SHARED_DOWN -> shared(c);
      case LATENT_OUT -> c.latentSize();
    };
  }

  static long out(LoraTarget target, MoeConfig c) {
    return switch (target) {
      case GATE, UP -> c.intermediateSize();
      case DOWN -> c.expertHiddenSize();
      case SHARED_GATE, SHARED_UP -> shared(c);
      case SHARED_DOWN, LATENT_OUT -> c.hiddenSize();
      case SHARED_EXPERT_GATE -> 1;
      case LATENT_IN -> c.latentSize();
      case ROUTER -> c.numChoices();
    };
  }

  private static long shared(MoeConfig c) {
    return c.sharedExpert().map(SharedExpertConfig::intermediateSize).orElse(0);
  }
}
