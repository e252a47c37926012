package io.moe4j.oracle;

/** Lets calls in until it is closed; closing waits for those inside. */
final class InFlightCalls {
  private final String what;
  private int inside;
  private boolean closed;

  InFlightCalls(String what) {
    this.what = what;
  }

  synchronized void enter() {
    if (closed) {
      throw new IllegalStateException(what + " is closed");
    }
    inside++;
  }

  synchronized void leave() {
    inside--;
    if (inside == 0) {
      notifyAll();
    }
  }

  /** {@return whether this call closed it} Returns when nobody is inside, whoever closed it. */
  synchronized boolean close() {
    boolean first = !closed;
    closed = true;
    boolean interrupted = false;
    while (inside > 0) {
      try {
        wait();
      } catch (InterruptedException e) {
        interrupted = true; // memory in use cannot be freed, interrupted or not
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    return first;
  }
}
