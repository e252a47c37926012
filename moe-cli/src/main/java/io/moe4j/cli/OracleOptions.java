package io.moe4j.cli;

import io.moe4j.oracle.MoeOracle;
import java.nio.file.Path;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Option;

/** Which backends there are, and which of them to take. */
final class OracleOptions {
  /** How many threads backend-cpu computes with. */
  private static final String CPU_THREADS = "moe4j.cpu.threads";

  /** Where backend-triton looks for what moe tune found. */
  private static final String TILES = "moe4j.triton.tiles";

  @Option(
      names = "--backend",
      paramLabel = "NAME",
      description = "Take this backend; refused with its reasons if it does not fit.")
  @Nullable String backend;

  @Option(
      names = "--plugins",
      paramLabel = "DIR",
      description =
          "Look for further backends here: each jar, and each folder of jars, is a plugin. Default:"
              + " MOE_PLUGINS, if that is set.",
      defaultValue = "$" + "{env:MOE_PLUGINS}")
  @Nullable Path plugins;

  @Option(
      names = "--threads",
      paramLabel = "N",
      description = "Threads of the CPU backend. Default: all processors.")
  private @Nullable Integer threads;

  @Option(
      names = "--tiles",
      paramLabel = "FILE",
      description =
          "Tuned tiles of the GPU backend, see moe tune; off = the built-in table. Default: the"
              + " file in the user's cache directory, if it is there.")
  private @Nullable String tiles;

  /** {@return threads of the CPU backend} */
  int threads() {
    return threads != null ? threads : Integer.getInteger(CPU_THREADS, Machine.processors());
  }

  /** Finds the backends. Comes before any of them is used. */
  MoeOracle discover() {
    if (threads != null) {
      if (threads < 1) {
        throw CliException.usage("--threads is " + threads + ", must be at least 1");
      }
      // Read by the backend when its threads start, at the first layer of this process.
      System.setProperty(CPU_THREADS, Integer.toString(threads));
    }
    if (tiles != null) {
      if (tiles.isBlank()) {
        throw CliException.usage("--tiles is empty, must be a file or off");
      }
      System.setProperty(TILES, tiles);
    }
    if (plugins == null) {
      return MoeOracle.discover();
    }
    RunInput.requireDirectory("--plugins", plugins);
    return MoeOracle.discover(plugins);
  }
}
