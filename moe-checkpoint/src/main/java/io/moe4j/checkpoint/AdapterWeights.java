package io.moe4j.checkpoint;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.foreign.Arena;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.Pattern;
import java.util.stream.Stream;

/** Finds the file or files that hold an adapter's weights. */
final class AdapterWeights {
  private static final String PEFT = "adapter_model";
  private static final String MLX = "adapters";
  private static final String SUFFIX = ".safetensors";

  /** What KTransformers writes beside it; without it the experts would keep their base weights. */
  private static final String FUSED_EXPERTS = "fused_expert_lora.safetensors";

  private static final Pattern SHARD =
      Pattern.compile("adapter_model-\\d{5}-of-\\d{5}\\.safetensors");

  /** What mlx-lm keeps of a training that has not ended, or did not. */
  private static final Pattern MLX_STEP = Pattern.compile("\\d{7}_adapters\\.safetensors");

  private AdapterWeights() {}

  static ShardedTensors open(Path directory, AdapterConfig.Form form, Arena arena) {
    return switch (form) {
      case PEFT -> peft(directory, arena);
      case MLX -> mlx(directory, arena);
    };
  }

  /** One file, or shards as checkpoints have them. */
  private static ShardedTensors peft(Path directory, Arena arena) {
    if (Files.exists(directory.resolve(FUSED_EXPERTS))) {
      throw new AdapterException(
          directory
              + " also holds "
              + FUSED_EXPERTS
              + ": fine-tuning with KTransformers keeps the experts' factors there, apart from "
              + PEFT
              + SUFFIX
              + ", and a file of its own form is not read; export the adapter as PEFT's first");
    }
    Path weights = directory.resolve(PEFT + SUFFIX);
    boolean there =
        Files.exists(weights)
            || Files.exists(directory.resolve(PEFT + SUFFIX + ".index.json"))
            || !matching(directory, SHARD).isEmpty();
    if (there) {
      return ShardedTensors.open(
          directory, PEFT, n -> SHARD.matcher(n).matches(), arena, LoadProgress.NONE);
    }
    throw new CheckpointException(
        weights
            + " does not exist"
            + ForeignAdapters.hint(directory)
            + Folders.hint(directory, PEFT + SUFFIX));
  }

  private static ShardedTensors mlx(Path directory, Arena arena) {
    Path weights = directory.resolve(MLX + SUFFIX);
    if (Files.exists(weights)) {
      return ShardedTensors.open(directory, MLX, n -> false, arena, LoadProgress.NONE);
    }
    List<String> steps = matching(directory, MLX_STEP);
    throw new CheckpointException(
        weights
            + " does not exist, where "
            + AdapterConfig.FILE
            + " is mlx-lm's"
            + (steps.isEmpty()
                ? ForeignAdapters.hint(directory)
                : "; "
                    + steps.getLast()
                    + " is there, saved during training: copy it to that name"));
  }

  /** Names of files in a directory, sorted. */
  private static List<String> matching(Path directory, Pattern name) {
    try (Stream<Path> paths = Files.list(directory)) {
      return paths
          .map(p -> String.valueOf(p.getFileName()))
          .filter(n -> name.matcher(n).matches())
          .sorted()
          .toList();
    } catch (IOException | UncheckedIOException e) {
      throw new CheckpointException(directory + " cannot be listed: " + Folders.reason(e), e);
    }
  }
}
