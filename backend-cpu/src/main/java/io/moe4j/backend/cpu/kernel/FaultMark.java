package io.moe4j.backend.cpu.kernel;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/**
 * Lets the process live when a file is shortened while its weights are being read.
 *
 * <p>Reading a mapped page that the file no longer has raises SIGBUS. HotSpot turns it into an
 * {@link InternalError} if the compiled method at fault contains a plain access to memory by
 * address, which it notes while it compiles; a vector load is not noted, and a method with nothing
 * else would end the process. So each vector load of weights comes with a plain access to a byte of
 * our own. Its result is not used and no instruction is left of it; the note stays.
 */
final class FaultMark {
  private static final MemorySegment OWN = MemorySegment.ofArray(new byte[1]);

  private FaultMark() {}

  /** Marks the method that this is inlined into. */
  static void set() {
    byte unused = OWN.get(ValueLayout.JAVA_BYTE, 0);
  }
}
