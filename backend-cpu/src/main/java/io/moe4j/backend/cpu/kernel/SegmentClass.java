package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;

/**
 * Tells the compiler the class of a segment before a loop, so that it checks the segment once
 * instead of at each access.
 *
 * <p>What a loop checks at an access (the segment's class, bounds, whether its arena lives) leaves
 * the loop only if HotSpot knows the class. It learns classes from profiles of the JDK's access
 * methods, and those are shared by the whole process: one vector stored through another class of
 * segment, which the Vector API itself does while {@code reinterpretAsInts} is not compiled yet, or
 * weights mapped from a file beside weights that were allocated, and every loop asks at every
 * access which class it is. A comparison with a constant class makes it known whatever profiles
 * say.
 */
final class SegmentClass {
  /** The class of allocated memory. A workspace is that. */
  static final Class<?> NATIVE = MemorySegment.NULL.getClass();

  private SegmentClass() {}

  /**
   * {@return the segment}
   *
   * @param s a segment that the caller has looked at
   * @param c its class
   */
  static MemorySegment known(MemorySegment s, Class<?> c) {
    if (s.getClass() != c) {
      throw new IllegalStateException(s + " is not " + c);
    }
    return s;
  }
}
