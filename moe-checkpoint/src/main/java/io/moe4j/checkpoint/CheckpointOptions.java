package io.moe4j.checkpoint;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;

/**
 * How a checkpoint is opened. Immutable.
 *
 * @param layouts families by {@code model_type}, besides those known by name; the same type here
 *     comes first
 * @param progress told about each file
 */
public record CheckpointOptions(Map<String, CheckpointLayout> layouts, LoadProgress progress) {
  /** The known families, no progress reported. */
  public static final CheckpointOptions DEFAULT =
      new CheckpointOptions(Map.of(), LoadProgress.NONE);

  /**
   * Checks and copies the components.
   *
   * @param layouts copied
   * @param progress told about each file
   */
  public CheckpointOptions {
    layouts = Map.copyOf(layouts);
    Objects.requireNonNull(progress, "progress");
  }

  /**
   * {@return these options and one more family}
   *
   * @param layout the family; replaces one of the same {@code model_type}
   */
  public CheckpointOptions withLayout(CheckpointLayout layout) {
    Map<String, CheckpointLayout> more = new LinkedHashMap<>(layouts);
    more.put(layout.modelType(), layout);
    return new CheckpointOptions(more, progress);
  }

  /**
   * {@return these options with progress reported}
   *
   * @param progress told about each file
   */
  public CheckpointOptions withProgress(LoadProgress progress) {
    return new CheckpointOptions(layouts, progress);
  }

  Map<String, CheckpointLayout> allLayouts() {
    Map<String, CheckpointLayout> all = KnownLayouts.all();
    all.putAll(layouts);
    return all;
  }
}
