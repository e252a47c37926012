package io.moe4j.checkpoint;

import io.moe4j.api.lora.LoraTarget;

/** Where a module named in an adapter stands, seen from the MoE blocks of a model. */
sealed interface ModulePlace {
  /** Outside every MoE block. */
  record Outside(String reason) implements ModulePlace {}

  /**
   * Part of a block (or of one the model lacks), or what looks like it, but not to be changed by an
   * adapter here.
   *
   * @param reason why
   * @param absent whether the model has no such module, so that nothing is lost where the adapter
   *     has nothing for it either
   */
  record Unappliable(String reason, boolean absent) implements ModulePlace {
    Unappliable(String reason) {
      this(reason, false);
    }
  }

  /** The router's weight. */
  record Router(int layer) implements ModulePlace {}

  /** One projection of one routed expert. */
  record Expert(int layer, int expert, LoraTarget target) implements ModulePlace {}

  /** Gate and up of one routed expert as one linear map. */
  record ExpertGateUp(int layer, int expert) implements ModulePlace {}

  /**
   * The wrappers around all experts of a layer, as PEFT nests them.
   *
   * @param layer layer index
   * @param experts the experts' module, like {@code model.layers.0.mlp.experts}
   * @param depth how many {@code base_layer} the key has: 0 is the outermost wrapper
   */
  record Wrapper(int layer, String experts, int depth) implements ModulePlace {}

  /**
   * All experts' factors under the name of the parameter.
   *
   * @param layer layer index
   * @param parameter fused parameter
   * @param ofModule whether PEFT wrapped a module that holds this one parameter, so that its folded
   *     2-D form is certain
   */
  record Named(int layer, CheckpointLayout.FusedParameter parameter, boolean ofModule)
      implements ModulePlace {}

  /** All experts' factors of one projection, stacked. */
  record Stacked(int layer, LoraTarget target) implements ModulePlace {}

  /** A linear map that all tokens pass. */
  record Dense(int layer, LoraTarget target) implements ModulePlace {}

  /** The shared expert's gate and up as one linear map. */
  record DenseGateUp(int layer) implements ModulePlace {}
}
