package io.moe4j.backend.cpu;

import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * Memory that a caller has mapped from a file, which somebody may shorten meanwhile. A page that
 * the file no longer has ends the process when C reads or writes it, and when the JVM does so in
 * some compiled vector code; plain copies of the JVM throw an {@link InternalError}. So kernels see
 * copies of what is small; weights are packed, or read with {@code FaultMark}.
 */
final class FileMemory {
  private FileMemory() {}

  /** {@return the bytes in memory that nobody can take away} */
  static MemorySegment read(MemorySegment s) {
    return s.isMapped() ? own(s).copyFrom(s) : s;
  }

  /** {@return the bytes, likewise; a copy is the arena's} */
  static MemorySegment read(MemorySegment s, Arena arena) {
    return s.isMapped() ? arena.allocate(s.byteSize(), 64).copyFrom(s) : s;
  }

  /** {@return a tensor's bytes, likewise} */
  static MemorySegment read(Tensor t) {
    return read(t.segment());
  }

  /** {@return a tensor with the same elements and strides, likewise} */
  static Tensor copied(Tensor t) {
    MemorySegment s = Rows.segment(t);
    if (!s.isMapped()) {
      return t;
    }
    long elements = 1;
    long[] strides = new long[t.dims()];
    for (int d = 0; d < strides.length; d++) {
      strides[d] = t.stride(d);
      elements += (t.size(d) - 1) * strides[d];
    }
    MemorySegment used = s.asSlice(t.byteOffset(), t.dtype().byteSize(elements));
    return Tensor.strided(t.dtype(), new HostMemory(read(used)), 0, t.shape(), strides);
  }

  /** {@return where to write instead; the same segment unless it is mapped} */
  static MemorySegment standIn(MemorySegment s) {
    return s.isMapped() ? own(s) : s;
  }

  /** Writes what a stand-in holds to where it belongs. */
  static void writeBack(MemorySegment standIn, MemorySegment s) {
    if (s.isMapped()) {
      s.copyFrom(standIn);
    }
  }

  private static MemorySegment own(MemorySegment s) {
    return Arena.ofAuto().allocate(Math.max(1, s.byteSize()), 64).asSlice(0, s.byteSize());
  }
}
