package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.weights.MoeLayerWeights;

/**
 * Prepares the parts of a MoE block around the routed experts on one type of device: router, topk,
 * latent projections, shared expert, local dispatch and combine. Found by {@link
 * java.util.ServiceLoader}; a {@link io.moe4j.api.device.DeviceProvider} for a new type of device
 * needs one of these beside it. Constructing it and asking its type must not throw and
 * must not touch a device. Safe for several threads.
 *
 * @since 0.2.0
 */
public interface BlockOpsProvider {
  /** {@return the type of device it serves} */
  DeviceType deviceType();

  /**
   * Prepares one layer. May upload weights and be slow.
   *
   * @param config the layer
   * @param weights fits {@code config}; views that stay valid until the result is closed
   * @param device an open device of {@link #deviceType()}; outlives the result
   * @return the operations, owned by the caller
   * @throws io.moe4j.api.DeviceException if the device cannot hold or run them
   */
  BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device);
}
