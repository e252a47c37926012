package io.moe4j.comm.nccl;

import io.moe4j.cuda.PythonPackages;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * Where NCCL is looked for.
 *
 * @param given what the user named: the file, its folder, or a folder of Python packages; nothing
 *     else is looked at then
 * @param loader folders of the dynamic loader and of CUDA
 * @param sites folders of Python packages, the preferred one first
 */
record NcclPlaces(Optional<Path> given, List<Path> loader, List<Path> sites) {
  /** The file, its folder, or a folder of Python packages. */
  static final String PATH_PROPERTY = "moe4j.nccl.path";

  /** The same as an environment variable. */
  static final String PATH_VARIABLE = "MOE_NCCL_PATH";

  /** Where the wheels {@code nvidia-nccl-cu13} and {@code nvidia-nccl-cu12} put it. */
  private static final Path IN_SITE = Path.of("nvidia", "nccl", "lib", NcclLibrary.FILE);

  private static final List<String> SYSTEM =
      List.of(
          "/usr/local/lib",
          "/usr/lib/x86_64-linux-gnu",
          "/usr/lib/aarch64-linux-gnu",
          "/usr/lib64",
          "/usr/lib",
          "/usr/local/cuda/lib64");

  /** {@return the places of this process: its properties, its environment, its user} */
  static NcclPlaces ofThisProcess() {
    return of(System::getProperty, System::getenv);
  }

  /** The same, for any properties and environment. */
  static NcclPlaces of(
      Function<String, @Nullable String> properties,
      Function<String, @Nullable String> environment) {
    Optional<Path> given =
        path(properties.apply(PATH_PROPERTY)).or(() -> path(environment.apply(PATH_VARIABLE)));
    Set<Path> loader = new LinkedHashSet<>();
    String folders = environment.apply("LD_LIBRARY_PATH");
    for (String folder : folders == null ? new String[0] : folders.split(":")) {
      path(folder).ifPresent(loader::add);
    }
    SYSTEM.forEach(s -> loader.add(Path.of(s)));
    return new NcclPlaces(
        given,
        List.copyOf(loader),
        PythonPackages.folders(environment, path(properties.apply("user.home")).orElse(null)));
  }

  /** {@return the files to look at, in order; they need not be there} */
  List<Path> files() {
    List<Path> all = new ArrayList<>();
    if (given.isPresent()) {
      Path named = given.get();
      all.add(named);
      all.add(named.resolve(NcclLibrary.FILE));
      all.add(named.resolve(IN_SITE));
      return all;
    }
    loader.forEach(folder -> all.add(folder.resolve(NcclLibrary.FILE)));
    sites.forEach(site -> all.add(site.resolve(IN_SITE)));
    return all;
  }

  private static Optional<Path> path(@Nullable String text) {
    try {
      return text == null || text.isBlank()
          ? Optional.empty()
          : Optional.of(Path.of(text.strip()).toAbsolutePath().normalize());
    } catch (InvalidPathException e) {
      return Optional.empty();
    }
  }
}
