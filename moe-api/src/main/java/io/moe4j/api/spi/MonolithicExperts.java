package io.moe4j.api.spi;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import java.util.Optional;

/**
 * Experts that route by themselves. They own the routed experts only: shared experts and latent
 * projections are added by the layer, whatever the kind of experts.
 *
 * @since 0.1.0
 */
public non-sealed interface MonolithicExperts extends Experts {
  /**
   * Routing, both products, activation, weighted sum.
   *
   * @param inputs tensors in and out
   * @param lora adapters of this batch; empty = none. Only {@link LoraExperts} are ever given any
   * @param workspace at least {@link #workspaceBytes} for this call's {@code T}
   * @param stream where to run
   */
  void apply(
      MonolithicInputs inputs,
      Optional<MoeLoraContext> lora,
      Workspace workspace,
      DeviceStream stream);
}
