package io.moe4j.api.tensor;

import java.lang.foreign.MemorySegment;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Memory that Java can read: native, memory-mapped, or on the heap.
 *
 * @param segment the memory; its arena's rules on closing and threads hold
 * @param source what the memory can be lost with, a mapped file; null where nothing but its arena
 *     can take it away
 * @since 0.1.0
 */
public record HostMemory(MemorySegment segment, @Nullable MemorySource source) implements Memory {
  /**
   * Checks the components.
   *
   * @param segment the memory
   * @param source what it can be lost with, or null
   */
  public HostMemory {
    Objects.requireNonNull(segment, "segment");
  }

  /**
   * Memory that is lost with its arena only.
   *
   * @param segment the memory
   */
  public HostMemory(MemorySegment segment) {
    this(segment, null);
  }

  @Override
  public long byteSize() {
    return segment.byteSize();
  }
}
