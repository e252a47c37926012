package io.moe4j.api.spi;

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
   * Makes a wrapper.
   *
   * @param device of that type; stays open longer than the wrapper
   * @return the wrapper, owned by the caller
   * @throws io.moe4j.api.DeviceException if the device cannot run it, with the reason
   */
  PunicaWrapper open(Device device);
}
