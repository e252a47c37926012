package io.moe4j.api.spi;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Experts that take topk ids and weights, so that routing, dispatch and LoRA stay outside.
 *
 * @since 0.1.0
 */
public non-sealed interface ModularExperts extends Experts {
  /**
   * w13 product, activation, w2 product, weighted sum over k.
   *
   * @param inputs tensors in and out
   * @param lora adapters of this batch; null = none. Only {@link LoraExperts} are ever given any
   * @param workspace at least {@link #workspaceBytes} for this call's {@code T}
   * @param stream where to run
   */
  void apply(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream);

  /**
   * As {@link #apply}, which it is unless an implementation has more: where the last work on the
   * stream is this call's routing by {@link BlockOps#route} of a {@link BlockOps#routesAlone}. What
   * wrote the hidden states is in front of that, so it has finished by the time anything behind the
   * routing runs: work that needs no ids may begin while the routing still runs.
   *
   * @param inputs tensors in and out
   * @param lora as for {@link #apply}
   * @param workspace as for {@link #apply}
   * @param stream where the routing runs
   * @since 0.2.0
   */
  default void applyRouted(
      ExpertsInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream) {
    apply(inputs, lora, workspace, stream);
  }

  /**
   * Routes as {@link BlockOps#route} does and applies, for implementations that make their own
   * input in the same launch as the routing. Asked only without adapters and for what a router does
   * with logits alone: no correction bias, no scales of experts, no token ids, no zero experts.
   * Groups, a floor of the weights' sum and all else that {@code RoutingConfig} says is theirs to
   * look at.
   *
   * @param logits F32 {@code [T, E]}
   * @param inputs tensors in and out; the routing's ids and weights are overwritten
   * @param workspace as for {@link #apply}
   * @param stream where to run
   * @return whether it was done. If not, as by default, nothing was enqueued and nothing written,
   *     and the layer routes
   * @since 0.2.0
   */
  default boolean routeAndApply(
      Tensor logits, ExpertsInputs inputs, Workspace workspace, DeviceStream stream) {
    return false;
  }
}
