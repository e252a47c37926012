package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.SharedExpertConfig.Combine;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.weights.MoeLayerWeights;

/**
 * Prepares the parts of a MoE block around the routed experts on one type of device: router, topk,
 * latent projections, shared expert, local dispatch and combine. Found by {@link
 * java.util.ServiceLoader}; a {@link io.moe4j.api.device.DeviceProvider} for a new type of device
 * needs one of these beside it. Constructing it and asking its type must not throw and must not
 * touch a device. Safe for several threads.
 *
 * @since 0.2.0
 */
public interface BlockOpsProvider {
  /** {@return the type of device it serves} */
  DeviceType deviceType();

  /**
   * Whether it can do what a layer asks around the experts. The oracle adds a refusal to the
   * reasons of every backend on this type of device, so backends need not ask for these things
   * themselves.
   *
   * @param config the layer
   * @return yes, or every reason; by default a refusal of what not every provider can be expected
   *     to know: a router that normalises its input, scales its experts, floors the sum of the
   *     weights or chooses by token id; zero experts; an input norm, an output bias, an average
   *     with the shared expert
   */
  default Support isSupportedConfig(MoeConfig config) {
    Support.Checks checks = Support.checks();
    RoutingConfig routing = config.routing();
    String who = " around experts on " + deviceType();
    checks.require(
        !routing.byTokenId(), Code.ROUTING, () -> "routing by token id is not done" + who);
    checks.require(
        routing.inputNorm().isEmpty(),
        Code.ROUTING,
        () -> "a router that normalises its input is not computed" + who);
    checks.require(
        !routing.expertScale(), Code.ROUTING, () -> "a router's expert scales are not used" + who);
    checks.require(
        routing.sumFloor() == 0,
        Code.ROUTING,
        () -> "a floor of the weights' sum (" + routing.sumFloor() + ") is not computed" + who);
    checks.require(
        config.zeroExperts() == 0,
        Code.ROUTING,
        () -> config.zeroExperts() + " zero experts are not computed" + who);
    checks.require(
        config.inputNorm().isEmpty(),
        Code.OTHER,
        () -> "a norm of the experts' input is not computed" + who);
    checks.require(!config.outputBias(), Code.BIAS, () -> "an output bias is not added" + who);
    checks.require(
        config.sharedExpert().map(s -> s.combine() == Combine.ADD).orElse(true),
        Code.OTHER,
        () -> "an average with the shared expert is not computed" + who);
    return checks.result();
  }

  /**
   * Prepares one layer. May upload weights and be slow.
   *
   * @param config the layer
   * @param weights fits {@code config}; views that stay valid until the result is closed
   * @param device an open device of {@link #deviceType()}; outlives the result
   * @return the operations, owned by the caller
   * @throws IllegalArgumentException if {@link #isSupportedConfig} refuses the layer
   * @throws io.moe4j.api.DeviceException if the device cannot hold or run them
   */
  BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device);
}
