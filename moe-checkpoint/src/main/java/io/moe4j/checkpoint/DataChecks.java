package io.moe4j.checkpoint;

import java.util.ArrayList;
import java.util.List;

/**
 * Checks that read the elements of tensors and not only their shapes. Made while a block is read,
 * run before its weights are handed out, once. Threads may run them at the same time.
 */
final class DataChecks {
  private final List<Runnable> checks = new ArrayList<>();
  private long bytes;
  private volatile boolean done;

  /**
   * Adds one; before the first run.
   *
   * @param bytesRead how much it reads
   * @param check throws what is wrong
   */
  void add(long bytesRead, Runnable check) {
    checks.add(check);
    bytes += bytesRead;
  }

  /** What all of them read. */
  long bytes() {
    return bytes;
  }

  void run() {
    if (!done) {
      checks.forEach(Runnable::run);
      done = true;
    }
  }
}
