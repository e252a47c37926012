package io.moe4j.oracle;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.DeviceException;
import io.moe4j.api.MoeException;

/**
 * What code of others threw, as a documented exception that names them: backends and devices are
 * strangers, and whatever they throw, errors of every kind included, leaves this library as a
 * {@link MoeException}.
 */
final class Faults {
  private static final Object NOBODY = new Object();

  private Faults() {}

  /** Like {@code backend x from /plugins/x.jar}. */
  static String who(FoundBackend backend) {
    return "backend " + backend.name() + " from " + backend.origin();
  }

  /**
   * @param who who was called
   * @param doing like "failed to prepare"
   * @param what what came back
   */
  static RuntimeException of(String who, String doing, Throwable what) {
    Throwable thrown = PluginFault.printable(what);
    if (isMemoryFault(thrown)) {
      return new CheckpointException(
          who
              + ": memory that was read is gone: a mapped file was changed in place while it was in"
              + " use ("
              + thrown.getMessage()
              + ")",
          thrown);
    }
    String text = who + " " + doing + ": ";
    if (thrown.getClass() == DeviceException.class) {
      return new DeviceException(text + thrown.getMessage(), thrown);
    }
    if (thrown.getClass() == MoeException.class) {
      return new MoeException(text + thrown.getMessage(), thrown);
    }
    if (thrown instanceof MoeException e) {
      return e; // a kind of its own, which callers may look for
    }
    return new MoeException(text + PluginFault.describe(thrown), thrown);
  }

  /**
   * The same for what speaks of the caller's arguments.
   *
   * @param who who was called
   * @param what what came back
   */
  static IllegalArgumentException argument(String who, IllegalArgumentException what) {
    Throwable thrown = PluginFault.printable(what);
    String text = thrown.getMessage() == null ? thrown.toString() : thrown.getMessage();
    return new IllegalArgumentException(who + ": " + text, thrown);
  }

  /** What HotSpot throws where a mapped page is no longer there. */
  static boolean isMemoryFault(Throwable t) {
    return t instanceof InternalError
        && String.valueOf(PluginFault.printable(t).getMessage()).contains("memory access");
  }

  /**
   * HotSpot throws the error of a memory fault at the thread's next stop, not at the load itself. A
   * call into the virtual machine is one; this makes it, in some twenty nanoseconds.
   */
  static void settle() {
    if (Thread.holdsLock(NOBODY)) {
      throw new IllegalStateException("nobody locks this");
    }
  }
}
