package io.moe4j.checkpoint;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;

/**
 * How a checkpoint is opened. Immutable.
 *
 * @param layouts families by {@code model_type}, besides those known by name and those in the
 *     checkpoint's own {@value MoeCheckpoint#LAYOUT_FILE}; the same type here comes first
 * @param progress told about each file
 * @param root which of several models in the same files is meant: what precedes {@code layers.} in
 *     its tensors' names, empty or ending in a dot, like {@code thinker.model.}; an empty optional
 *     where there is one only
 */
public record CheckpointOptions(
    Map<String, CheckpointLayout> layouts, LoadProgress progress, Optional<String> root) {
  /** The known families, no progress reported. */
  public static final CheckpointOptions DEFAULT =
      new CheckpointOptions(Map.of(), LoadProgress.NONE, Optional.empty());

  /**
   * Checks and copies the components.
   *
   * @param layouts copied
   * @param progress told about each file
   * @param root a dot is added at the end where it lacks
   */
  public CheckpointOptions {
    layouts = Map.copyOf(layouts);
    Objects.requireNonNull(progress, "progress");
    root = root.map(r -> r.isEmpty() || r.endsWith(".") ? r : r + ".");
  }

  /**
   * {@return these options and one more family}
   *
   * @param layout the family; replaces one of the same {@code model_type}
   */
  public CheckpointOptions withLayout(CheckpointLayout layout) {
    Map<String, CheckpointLayout> more = new LinkedHashMap<>(layouts);
    more.put(layout.modelType(), layout);
    return new CheckpointOptions(more, progress, root);
  }

  /**
   * {@return these options with progress reported}
   *
   * @param progress told about each file
   */
  public CheckpointOptions withProgress(LoadProgress progress) {
    return new CheckpointOptions(layouts, progress, root);
  }

  /**
   * {@return these options for one of several models in the same files}
   *
   * @param root what precedes {@code layers.} in its tensors' names, like {@code thinker.model.}
   */
  public CheckpointOptions withRoot(String root) {
    return new CheckpointOptions(layouts, progress, Optional.of(root));
  }
}
