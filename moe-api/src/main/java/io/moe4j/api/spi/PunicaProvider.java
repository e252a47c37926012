package io.moe4j.api.spi;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceType;

/**
 * Makes the punica wrappers of one device type. Found by {@link java.util.ServiceLoader}, beside
 * the device's own classes or on the class path; one per type. Creating the provider must not need
 * the device.
 *
 * @since 0.1.0
 */
public interface PunicaProvider {
  /** {@return the type of device it serves} */
  DeviceType deviceType();

  /**
   * Whether it can make wrappers for a layer. The oracle adds a refusal to the reasons of every
   * backend on this type of device if the layer has LoRA: its registry of adapters makes a wrapper,
   * whoever adds the deltas.
   *
   * @param config the layer
   * @return yes, which is the default, or every reason
   * @since 0.2.0
   */
  default Support isSupportedConfig(MoeConfig config) {
    return Support.yes();
  }

  /**
   * Makes a wrapper.
   *
   * @param device of that type; stays open longer than the wrapper
   * @return the wrapper, owned by the caller
   * @throws io.moe4j.api.DeviceException if the device cannot run it, with the reason
   */
  PunicaWrapper open(Device device);
}
