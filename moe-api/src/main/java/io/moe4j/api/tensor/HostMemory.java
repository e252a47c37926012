package io.moe4j.api.tensor;

import java.lang.foreign.MemorySegment;
import java.util.Objects;

/**
 * Memory that Java can read: native, memory-mapped, or on the heap.
 *
 * @param segment the memory; its arena's rules on closing and threads hold
 * @since 0.1.0
 */
public record HostMemory(MemorySegment segment) implements Memory {
  /**
   * Checks the components.
   *
   * @param segment the memory
   */
  public HostMemory {
    Objects.requireNonNull(segment, "segment");
  }

  @Override
  public long byteSize() {
    return segment.byteSize();
  }
}
