package io.moe4j.cli;

/** Something to do if the process is ended from outside (Ctrl-C) before it was done in order. */
final class OnInterrupt implements AutoCloseable {
  private final Thread hook;

  private OnInterrupt(Thread hook) {
    this.hook = hook;
  }

  static OnInterrupt run(Runnable action) {
    Thread hook = new Thread(action, "cleanup");
    Runtime.getRuntime().addShutdownHook(hook);
    return new OnInterrupt(hook);
  }

  /** It has been done in order. */
  @Override
  public void close() {
    try {
      Runtime.getRuntime().removeShutdownHook(hook);
    } catch (IllegalStateException e) {
      // The process is ending already, and the hook is running or has run.
      org.slf4j.LoggerFactory.getLogger(OnInterrupt.class).debug("ending: {}", e.toString());
    }
  }
}
