package io.moe4j.api.platform;

import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.TreeMap;

/**
 * What is known of one device without touching it.
 *
 * @param id which one
 * @param name the vendor's name for it, like {@code NVIDIA H200}
 * @param capability compute capability of a CUDA device, empty elsewhere
 * @param memoryBytes its memory, 0 when unknown
 * @param properties anything else a backend may ask for ({@code cores}, {@code vector-bits}, {@code
 *     driver}, {@code arch}); keys are stable, values are free text unless a provider documents
 *     otherwise
 * @since 0.1.0
 */
public record DeviceInfo(
    DeviceId id,
    String name,
    Optional<ComputeCapability> capability,
    long memoryBytes,
    Map<String, String> properties) {

  /**
   * Checks and copies the components.
   *
   * @param id which one
   * @param name the vendor's name
   * @param capability for CUDA
   * @param memoryBytes 0 when unknown
   * @param properties copied
   */
  public DeviceInfo {
    Objects.requireNonNull(id, "id");
    Objects.requireNonNull(name, "name");
    Objects.requireNonNull(capability, "capability");
    properties = java.util.Collections.unmodifiableMap(new TreeMap<>(properties));
  }

  /**
   * A device with nothing but a name: handy for tests and mocks.
   *
   * @param id which one
   * @param name its name
   * @return the description
   */
  public static DeviceInfo of(DeviceId id, String name) {
    return new DeviceInfo(id, name, Optional.empty(), 0, Map.of());
  }

  /**
   * A CUDA device of some capability.
   *
   * @param ordinal which one
   * @param name its name
   * @param major capability
   * @param minor capability
   * @return the description
   */
  public static DeviceInfo cuda(int ordinal, String name, int major, int minor) {
    return new DeviceInfo(
        new DeviceId(DeviceType.CUDA, ordinal),
        name,
        Optional.of(new ComputeCapability(major, minor)),
        0,
        Map.of());
  }
}
