package io.moe4j.api.tensor;

/**
 * A stretch of memory on the host or on a device. It is a description: whoever allocated the memory
 * owns it and keeps it alive while any tensor over it is in use.
 */
public sealed interface Memory permits HostMemory, DeviceMemory {
  /** {@return the length in bytes} */
  long byteSize();
}
