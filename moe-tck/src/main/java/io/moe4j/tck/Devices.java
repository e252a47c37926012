package io.moe4j.tck;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.reference.HostDevice;
import java.util.Optional;
import java.util.ServiceLoader;
import org.junit.jupiter.api.Assumptions;

/** Opens devices by type. */
final class Devices {
  private Devices() {}

  /**
   * {@return the preferred device of a type; without one the tests are skipped, saying why. The
   * host processor is always there, with or without a provider}
   */
  static Device open(DeviceType type) {
    Optional<DeviceProvider> provider =
        ServiceLoader.load(DeviceProvider.class).stream()
            .map(ServiceLoader.Provider::get)
            .filter(p -> p.type().equals(type))
            .findFirst();
    if (provider.isEmpty() && type.equals(DeviceType.CPU)) {
      return new HostDevice(DeviceInfo.of(DeviceId.CPU, "host"));
    }
    return open(
        provider.orElseThrow(() ->
            new AssertionError(
                "no DeviceProvider for \""
                    + type
                    + "\" on the class path; override openDevice()")));
  }

  static Device open(DeviceProvider provider) {
    DeviceProvider.Probe probe = provider.probe();
    if (probe.devices().isEmpty()) {
      Assumptions.abort("skipped: no " + provider.type() + " device (" + probe.absent() + ")");
    }
    return provider.open(probe.devices().getFirst().id().ordinal());
  }
}
