package io.moe4j.api.spi;

import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.tensor.Tensor;
import org.jspecify.annotations.Nullable;

/**
 * Experts that route by themselves. They own the routed experts only: shared experts and latent
 * projections are added by the layer, whatever the kind of experts.
 */
public non-sealed interface MonolithicExperts extends Experts {
  /**
   * Routing, both products, activation, weighted sum.
   *
   * @param hidden {@code [T, H]}
   * @param routerLogits F32 {@code [T, E]}
   * @param correctionBias F32 {@code [E]} or null, as the routing config says
   * @param output {@code [T, H]}, overwritten
   * @param workspace at least {@link #workspaceBytes} for this {@code T}
   * @param stream where to run
   */
  void apply(
      Tensor hidden,
      Tensor routerLogits,
      @Nullable Tensor correctionBias,
      Tensor output,
      Workspace workspace,
      DeviceStream stream);
}
