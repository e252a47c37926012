package io.moe4j.cli;

import io.moe4j.api.config.SystemSettings;
import io.moe4j.oracle.MoeOracle;
import java.nio.file.Path;
import java.util.Map;
import org.jspecify.annotations.Nullable;
import picocli.CommandLine.Option;

/** Which backends there are, and which of them to take. */
final class OracleOptions {
  /** How many threads backend-cpu computes with. */
  private static final String CPU_THREADS = "moe4j.cpu.threads";

  /** As many as backend-cpu takes. */
  private static final int MAX_THREADS = 1024;

  /** The folder of plugins where no option names one. */
  static final String PLUGINS_VARIABLE = "MOE_PLUGINS";

  /** Where each backend looks for what moe tune found. */
  private static final Map<String, String> TUNED =
      Map.of(
          "triton",
          "moe4j.triton.tiles",
          "batched-triton",
          "moe4j.triton.tiles",
          "marlin",
          "moe4j.marlin.plans",
          "flashinfer-cutlass",
          "moe4j.flashinfer.tactics");

  private static final String OFF = "off";

  @Option(
      names = "--backend",
      paramLabel = "NAME",
      completionCandidates = Candidates.Backends.class,
      description = "Take this backend; refused with its reasons if it does not fit.")
  @Nullable String backend;

  @Option(
      names = "--plugins",
      paramLabel = "DIR",
      description =
          "Look for further backends here: each jar, and each folder of jars, is a plugin. Default:"
              + " MOE_PLUGINS, if that is set and not empty.")
  private @Nullable String pluginsOption;

  @Option(
      names = "--threads",
      paramLabel = "N",
      description = "Threads of the CPU backend. Default: all processors.")
  private @Nullable Integer threads;

  @Option(
      names = "--tiles",
      paramLabel = "FILE",
      description =
          "What moe tune found for triton, or for the --backend that is named; off = the built-in"
              + " tables of all. Default: the files in the user's cache directory, if they are"
              + " there.")
  private @Nullable String tiles;

  /** {@return the folder of plugins, by option or environment; null without one} */
  @Nullable Path plugins() {
    if (pluginsOption != null) {
      if (pluginsOption.isBlank()) {
        throw CliException.usage("--plugins is empty, must be a directory");
      }
      return Path.of(pluginsOption);
    }
    // Set and empty is like unset. As a path it would be the current directory, whose jars are
    // nobody's choice.
    String set = System.getenv(PLUGINS_VARIABLE);
    return set == null || set.isBlank() ? null : Path.of(set);
  }

  /** {@return threads of the CPU backend} */
  int threads() {
    return threads != null
        ? threads
        : SystemSettings.number(CPU_THREADS, Machine.processors(), 1, MAX_THREADS);
  }

  /** Finds the backends. Comes before any of them is used. */
  MoeOracle discover() {
    if (threads != null) {
      if (threads < 1 || threads > MAX_THREADS) {
        throw CliException.usage("--threads is " + threads + ", must be 1.." + MAX_THREADS);
      }
      // Read by the backend when its threads start, at the first layer of this process.
      System.setProperty(CPU_THREADS, Integer.toString(threads));
    }
    if (tiles != null) {
      if (tiles.isBlank()) {
        throw CliException.usage("--tiles is empty, must be a file or off");
      }
      if (tiles.equalsIgnoreCase(OFF)) {
        TUNED.values().forEach(p -> System.setProperty(p, OFF));
      } else {
        String property = TUNED.get(backend == null ? "triton" : backend);
        if (property == null) {
          throw CliException.usage(
              "--tiles is "
                  + tiles
                  + ", but --backend "
                  + backend
                  + " is not tuned; accepted with "
                  + TUNED.keySet().stream().sorted().toList());
        }
        System.setProperty(property, tiles);
      }
    }
    Path plugins = plugins();
    if (plugins == null) {
      return MoeOracle.discover();
    }
    RunInput.requireDirectory(pluginsOption != null ? "--plugins" : PLUGINS_VARIABLE, plugins);
    return MoeOracle.discover(plugins);
  }
}
