package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.Workspace;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.spi.Support.Code;
import org.jspecify.annotations.Nullable;

/**
 * Experts that route by themselves. They own the routed experts only: shared experts and latent
 * projections are added by the layer, whatever the kind of experts.
 *
 * @since 0.1.0
 */
public non-sealed interface MonolithicExperts extends Experts {
  /**
   * What a layer may not ask of experts that route by themselves: they get logits and a correction
   * bias, no token ids, no factors on experts, and know no zero experts. Their backend adds these
   * reasons to its own in {@code isSupportedConfig}.
   *
   * @param config the layer
   * @return yes, or every reason
   * @since 0.2.0
   */
  static Support isSupportedRouting(MoeConfig config) {
    Support.Checks checks = Support.checks();
    String who = " experts that route by themselves";
    checks.require(
        !config.routing().byTokenId(), Code.ROUTING, () -> "routing by token id is not for" + who);
    checks.require(
        !config.routing().expertScale(),
        Code.ROUTING,
        () -> "a router's expert scales are not for" + who);
    checks.require(
        config.zeroExperts() == 0,
        Code.ROUTING,
        () -> config.zeroExperts() + " zero experts are not for" + who);
    return checks.result();
  }

  /**
   * Routing, both products, activation, weighted sum.
   *
   * @param inputs tensors in and out
   * @param lora adapters of this batch; null = none. Only {@link LoraExperts} are ever given any
   * @param workspace at least {@link #workspaceBytes} for this call's {@code T}
   * @param stream where to run
   */
  void apply(
      MonolithicInputs inputs,
      @Nullable MoeLoraContext lora,
      Workspace workspace,
      DeviceStream stream);
}
