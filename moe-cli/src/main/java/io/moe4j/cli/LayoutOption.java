package io.moe4j.cli;

import io.moe4j.checkpoint.CheckpointLayout;
import io.moe4j.checkpoint.CheckpointOptions;
import io.moe4j.checkpoint.MoeCheckpoint;
import java.nio.file.Files;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Option;

/** {@code --layout}: the family of a checkpoint that is not known by name. */
final class LayoutOption {
  @Option(
      names = "--layout",
      paramLabel = "FILE",
      description =
          "JSON that describes the checkpoint's family, for a model_type that is not known. A file "
              + MoeCheckpoint.LAYOUT_FILE
              + " beside config.json is read by itself.")
  private @Nullable Path file;

  LayoutOption() {}

  CheckpointOptions options() {
    if (file == null) {
      return CheckpointOptions.DEFAULT;
    }
    if (!Files.isRegularFile(file)) {
      throw CliException.usage("--layout is " + file + ", must be a JSON file");
    }
    CheckpointOptions options = CheckpointOptions.DEFAULT;
    for (CheckpointLayout layout : CheckpointLayout.load(file)) {
      options = options.withLayout(layout);
    }
    return options;
  }

  MoeCheckpoint open(Path directory) {
    return MoeCheckpoint.open(directory, options());
  }
}
