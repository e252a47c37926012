package io.moe4j.checkpoint;

import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteOrder;

/**
 * Which group each input is in, as a file says it.
 *
 * @param index I32 {@code [in]}, contiguous
 * @param size inputs of a group
 */
record GroupIndex(Tensor index, int size) {
  private static final ValueLayout.OfInt I32 =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  /** Whether input {@code i} is in group {@code i / size} throughout. */
  boolean isTrivial() {
    MemorySegment s = index.segment();
    for (long i = 0; i < index.size(0); i++) {
      if (s.get(I32, i * Integer.BYTES) != i / size) {
        return false;
      }
    }
    return true;
  }

  /** Whether all are -1: compressed-tensors' way to say that there is none. */
  boolean isNone() {
    MemorySegment s = index.segment();
    for (long i = 0; i < index.size(0); i++) {
      if (s.get(I32, i * Integer.BYTES) != -1) {
        return false;
      }
    }
    return true;
  }
}
