package io.moe4j.api.device;

import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import java.util.List;
import java.util.Objects;
import java.util.Optional;

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

  /**
   * Multiply-adds in registers: what benchmarks measure a device's arithmetic limit with. Stateless
   * and thread-safe.
   *
   * @since 0.2.0
   */
  interface PeakLoop {
    /** {@return the units, for reports: {@code AMX}} */
    String units();

    /**
     * Computes on the calling thread, or on the device for it, until done.
     *
     * @param rounds at least 1; some nanoseconds each
     * @return floating-point operations that were done; a multiply-add is two
     */
    double run(long rounds);
  }

  /**
   * {@return the fastest multiply-adds that this device's backends use for a dtype; empty where the
   * provider knows none}
   *
   * @param type of both factors; sums are f32
   * @since 0.2.0
   */
  default Optional<PeakLoop> peakLoop(DType type) {
    return Optional.empty();
  }
}
