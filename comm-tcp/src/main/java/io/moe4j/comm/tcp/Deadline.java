package io.moe4j.comm.tcp;

import java.time.Duration;

/** A point in time that all steps of opening a group share. */
final class Deadline {
  final Duration length;
  private final long end;

  Deadline(Duration length) {
    this.length = length;
    this.end = System.nanoTime() + length.toNanos();
  }

  boolean isOver() {
    return System.nanoTime() - end >= 0;
  }

  /** {@return what is left for a socket, at least 1 ms} */
  int millisLeft() {
    long left = (end - System.nanoTime()) / 1_000_000;
    return Math.clamp(left, 1, Integer.MAX_VALUE);
  }
}
