package io.moe4j.api.device;

import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import java.util.List;
import java.util.Objects;

/**
 * Opens the devices of one type. Found by {@link java.util.ServiceLoader}, one per type. Absent is
 * not broken: a machine without the device, its driver or its native library gives an empty {@link
 * Probe} with the reason, never an exception.
 *
 * @since 0.1.0
 */
public interface DeviceProvider {
  /**
   * What was found.
   *
   * @param devices the preferred one first
   * @param absent why there is none, a readable clause; empty if there is one
   */
  record Probe(List<DeviceInfo> devices, String absent) {
    /**
     * Checks and copies the components.
     *
     * @param devices copied
     * @param absent why there is none
     */
    public Probe {
      devices = List.copyOf(devices);
      Objects.requireNonNull(absent, "absent");
    }
  }

  /** {@return the type whose devices it opens} */
  DeviceType type();

  /** {@return the devices of this machine; never throws, and may be called often} */
  Probe probe();

  /**
   * Opens a device.
   *
   * @param ordinal {@code 0..}
   * @return the device; several opens of one ordinal may share state
   * @throws io.moe4j.api.DeviceException if it cannot be opened
   */
  Device open(int ordinal);
}
