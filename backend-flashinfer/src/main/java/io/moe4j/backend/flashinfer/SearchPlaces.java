package io.moe4j.backend.flashinfer;

import io.moe4j.cuda.PythonPackages;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * Where FlashInfer is looked for.
 *
 * @param given what the user named: a module's file, a folder of modules, or a folder of Python
 *     packages; nothing else is looked at then
 * @param version the version of what was given, where its surroundings do not tell
 * @param tvm the file of TVM-FFI, if the user named one
 * @param sites folders of Python packages, the preferred one first
 * @param cache FlashInfer's cache of modules compiled on this machine
 * @param cuda folders of CUDA's libraries
 * @param cubins the folder of the TRTLLM experts' compiled kernels, if the user named one
 */
record SearchPlaces(
    Optional<Path> given,
    Optional<String> version,
    Optional<Path> tvm,
    List<Path> sites,
    Optional<Path> cache,
    List<Path> cuda,
    Optional<Path> cubins) {
  /** {@link FlashInferProperties#PATH} as an environment variable. */
  static final String PATH_VARIABLE = "MOE_FLASHINFER_PATH";

  /** FlashInfer's own variable: the folder of the TRTLLM experts' compiled kernels. */
  static final String CUBIN_VARIABLE = "FLASHINFER_CUBIN_DIR";

  SearchPlaces {
    sites = List.copyOf(sites);
    cuda = List.copyOf(cuda);
  }

  /** {@return the places of this process: its properties, its environment, its user} */
  static SearchPlaces ofThisProcess() {
    return of(System::getProperty, System::getenv);
  }

  /** The same, for any properties and environment. */
  static SearchPlaces of(
      Function<String, @Nullable String> properties,
      Function<String, @Nullable String> environment) {
    Optional<Path> given =
        path(properties.apply(FlashInferProperties.PATH))
            .or(() -> path(environment.apply(PATH_VARIABLE)));
    Optional<Path> home = path(properties.apply("user.home"));
    Optional<Path> base = path(environment.apply("FLASHINFER_WORKSPACE_BASE")).or(() -> home);
    return new SearchPlaces(
        given,
        text(properties.apply(FlashInferProperties.VERSION)),
        path(properties.apply(FlashInferProperties.TVM_FFI)),
        PythonPackages.folders(environment, home.orElse(null)),
        base.map(b -> b.resolve(".cache").resolve("flashinfer")),
        cuda(environment),
        path(environment.apply(CUBIN_VARIABLE)));
  }

  /** {@return the same, with what a layer's options name instead of what the process does} */
  SearchPlaces with(FlashInferOptions options) {
    return new SearchPlaces(
        options.path().or(() -> given),
        options.version().or(() -> version),
        tvm,
        sites,
        cache,
        cuda,
        cubins);
  }

  private static Optional<String> text(@Nullable String text) {
    return text == null || text.isBlank() ? Optional.empty() : Optional.of(text.strip());
  }

  private static Optional<Path> path(@Nullable String text) {
    try {
      return text(text).map(t -> Path.of(t).toAbsolutePath().normalize());
    } catch (InvalidPathException e) {
      return Optional.empty();
    }
  }

  /** {@return folders in a folder whose names begin so, the last by name first; empty if none} */
  static List<Path> children(Path folder, String beginning) {
    return PythonPackages.children(folder, beginning);
  }

  private static List<Path> cuda(Function<String, @Nullable String> environment) {
    List<Path> roots = new ArrayList<>();
    for (String variable : List.of("CUDA_HOME", "CUDA_PATH")) {
      path(environment.apply(variable)).ifPresent(roots::add);
    }
    roots.add(Path.of("/usr/local/cuda"));
    roots.addAll(children(Path.of("/usr/local"), "cuda-"));
    List<Path> found = new ArrayList<>();
    for (Path root : roots) {
      for (String name : List.of("lib64", "lib", "targets/x86_64-linux/lib")) {
        Path libraries = root.resolve(name);
        if (Files.isDirectory(libraries)) {
          found.add(libraries);
        }
      }
    }
    return found;
  }
}
