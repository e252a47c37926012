package io.moe4j.api.tensor;

/**
 * A stretch of memory on the host or on a device. It is a description: the allocator owns
 * the memory and keeps it alive while any tensor over it is in use.
 *
 * @since 0.1.0
 */
public sealed interface Memory permits HostMemory, DeviceMemory {
  /** {@return the length in bytes} */
  long byteSize();
}
