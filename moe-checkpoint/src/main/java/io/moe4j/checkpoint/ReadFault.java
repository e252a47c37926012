package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import java.nio.file.Path;
import java.util.function.Supplier;

/** Reading mapped files ends in an InternalError where a file became shorter meanwhile. */
final class ReadFault {
  /** What a thread waits for inside of {@link #settle}: nothing. */
  private static final Object NOBODY = new Object();

  private ReadFault() {}

  /**
   * Reads something, and reports such a fault as what it is.
   *
   * @param what the file or folder that is read
   */
  static <T> T guard(Path what, Supplier<T> reading) {
    try {
      T result = reading.get();
      settle();
      return result;
    } catch (InternalError e) {
      throw new CheckpointException(
          what + " was changed in place while it was read (" + e.getMessage() + ")", e);
    }
  }

  /**
   * HotSpot throws the error of a fault at the thread's next stop, not at the load itself. A call
   * into the virtual machine is one.
   */
  private static void settle() {
    if (Thread.holdsLock(NOBODY)) {
      throw new IllegalStateException("nobody locks this");
    }
  }
}
