package io.moe4j.api.tensor;

import io.moe4j.api.platform.DeviceId;
import java.util.Objects;

/**
 * Memory that only a device can read. Deliberately no {@link java.lang.foreign.MemorySegment}: Java
 * must not be able to dereference the address.
 *
 * @param device the device whose address space {@code address} belongs to
 * @param address the device address, for CUDA a {@code CUdeviceptr}; treated as unsigned
 * @param byteSize length in bytes
 * @since 0.1.0
 */
public record DeviceMemory(DeviceId device, long address, long byteSize) implements Memory {
  /**
   * Checks the components.
   *
   * @param device the device
   * @param address the device address
   * @param byteSize length in bytes, not negative
   */
  public DeviceMemory {
    Objects.requireNonNull(device, "device");
    if (byteSize < 0) {
      throw new IllegalArgumentException("byteSize is " + byteSize + ", must not be negative");
    }
  }
}
