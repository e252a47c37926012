package io.moe4j.tck;

import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Assumptions;

/** Opens devices by type. */
final class Devices {
  private Devices() {}

  /** {@return the preferred device of a type; without one the tests are skipped, saying why} */
  static Device open(DeviceType type) {
    DeviceProvider provider =
        ServiceLoader.load(DeviceProvider.class).stream()
            .map(ServiceLoader.Provider::get)
            .filter(p -> p.type().equals(type))
            .findFirst()
            .orElseThrow(() ->
                new AssertionError(
                    "no DeviceProvider for \""
                        + type
                        + "\" on the class path; override openDevice()"));
    return open(provider);
  }

  static Device open(DeviceProvider provider) {
    DeviceProvider.Probe probe = provider.probe();
    if (probe.devices().isEmpty()) {
      Assumptions.abort("skipped: no " + provider.type() + " device (" + probe.absent() + ")");
    }
    return provider.open(probe.devices().getFirst().id().ordinal());
  }
}
