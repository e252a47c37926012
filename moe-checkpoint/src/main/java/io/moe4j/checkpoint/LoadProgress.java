package io.moe4j.checkpoint;

/** Told how far a long load is. Called by the loading thread; must return quickly. */
@FunctionalInterface
public interface LoadProgress {
  /** Tells nobody. */
  LoadProgress NONE = (what, done, total) -> {};

  /**
   * One step is done.
   *
   * @param what what is being loaded, like {@code model-00002-of-00016.safetensors}
   * @param done steps done
   * @param total steps in all
   */
  void onProgress(String what, long done, long total);
}
