package io.moe4j.api.platform;

import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.stream.Collectors;

/**
 * A machine as backends see it: its devices, and for each device family that is absent the reason
 * why. A value: the same question can be asked about a machine that is not this one.
 *
 * @param devices all devices, the preferred one of each type first
 * @param absent why a device type has no device here ({@code cuda} → "libcuda.so.1 was not found"),
 *     as far as a provider looked
 * @since 0.1.0
 */
public record Platform(List<DeviceInfo> devices, Map<DeviceType, String> absent) {
  /**
   * Checks and copies the components.
   *
   * @param devices copied
   * @param absent copied
   */
  public Platform {
    devices = List.copyOf(devices);
    Map<DeviceType, String> sorted = new TreeMap<>((a, b) -> a.name().compareTo(b.name()));
    sorted.putAll(absent);
    absent = java.util.Collections.unmodifiableMap(sorted);
  }

  /**
   * A platform of the given devices.
   *
   * @param devices all devices
   * @return the platform
   */
  public static Platform of(DeviceInfo... devices) {
    return new Platform(List.of(devices), Map.of());
  }

  /**
   * A machine with nothing but a processor.
   *
   * @return the platform
   */
  public static Platform cpuOnly() {
    return of(DeviceInfo.of(DeviceId.CPU, "CPU"));
  }

  /**
   * {@return the preferred device of a type, if there is one}
   *
   * @param type the family asked for
   */
  public Optional<DeviceInfo> device(DeviceType type) {
    return devices.stream().filter(d -> d.id().type().equals(type)).findFirst();
  }

  /**
   * One sentence on why a device type is missing, for a backend's refusal.
   *
   * @param type a family without a device here
   * @return like {@code no cuda device (libcuda.so.1 was not found); this machine has cpu:0}
   */
  public String whyAbsent(DeviceType type) {
    String cause = absent.get(type);
    String here = devices.stream().map(d -> d.id().toString()).collect(Collectors.joining(", "));
    return "no "
        + type
        + " device"
        + (cause == null ? "" : " (" + cause + ")")
        + "; this machine has "
        + (here.isEmpty() ? "none" : here);
  }
}
