package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;

/** Loops that do nothing but read, or nothing but multiply and add, at the widest vectors. */
public interface Limits {
  /**
   * Reads a stretch of memory once.
   *
   * @param s the memory
   * @param offset where to begin, in bytes
   * @param length bytes
   * @return something that depends on every byte
   */
  double read(MemorySegment s, long offset, long length);

  /**
   * Independent multiply-adds.
   *
   * @param rounds how many
   * @return something that depends on all of them
   */
  double fma(int rounds);

  /** {@return floating-point operations of one round of {@link #fma}} */
  double flopsPerRound();
}
