package io.moe4j.cuda;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.function.Function;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * Where Python packages lie on this machine: many of NVIDIA's libraries come as such. Reads folders
 * only; no Python is run.
 *
 * @since 0.2.0
 */
public final class PythonPackages {
  private PythonPackages() {}

  /**
   * Active environments first, then the Python on the path, the user's packages, the system's.
   *
   * @param environment of the process, by name
   * @param home the user's folder, null if there is none
   * @return folders that are there, the preferred one first
   */
  public static List<Path> folders(
      Function<String, @Nullable String> environment, @Nullable Path home) {
    Set<Path> found = new LinkedHashSet<>();
    for (String variable : List.of("VIRTUAL_ENV", "CONDA_PREFIX")) {
      path(environment.apply(variable)).ifPresent(p -> found.addAll(packagesUnder(p)));
    }
    for (String entry : split(environment.apply("PYTHONPATH"))) {
      path(entry).filter(Files::isDirectory).ifPresent(found::add);
    }
    for (String entry : split(environment.apply("PATH"))) {
      path(entry)
          .map(p -> p.resolve("python3"))
          .filter(Files::isExecutable)
          .ifPresent(python -> {
            // As it is linked (a virtual environment), and where it really lies.
            found.addAll(packagesUnder(prefix(python)));
            found.addAll(packagesUnder(prefix(real(python))));
          });
    }
    if (home != null) {
      found.addAll(packagesUnder(home.resolve(".local")));
    }
    found.addAll(packagesUnder(Path.of("/usr/local")));
    found.addAll(packagesUnder(Path.of("/usr")));
    return List.copyOf(found);
  }

  private static String[] split(@Nullable String list) {
    return list == null || list.isEmpty() ? new String[0] : list.split(":");
  }

  private static Path real(Path file) {
    try {
      return file.toRealPath();
    } catch (IOException e) {
      return file;
    }
  }

  private static Path prefix(Path python) {
    Path bin = python.getParent();
    Path prefix = bin == null ? null : bin.getParent();
    return prefix == null ? python : prefix;
  }

  /** {@code lib/python3.N/site-packages} and its like under a prefix; newer Pythons first. */
  private static List<Path> packagesUnder(Path prefix) {
    List<Path> found = new ArrayList<>();
    for (Path python : children(prefix.resolve("lib"), "python3")) {
      for (String name : List.of("site-packages", "dist-packages")) {
        Path packages = python.resolve(name);
        if (Files.isDirectory(packages)) {
          found.add(packages);
        }
      }
    }
    return found;
  }

  /**
   * {@return folders in a folder whose names begin so, the last by name first; empty if none}
   *
   * @param folder which need not be there
   * @param beginning of their names
   */
  public static List<Path> children(Path folder, String beginning) {
    if (!Files.isDirectory(folder)) {
      return List.of();
    }
    try (Stream<Path> all = Files.list(folder)) {
      return all.filter(p -> String.valueOf(p.getFileName()).startsWith(beginning))
          .filter(Files::isDirectory)
          .sorted((a, b) -> b.compareTo(a))
          .toList();
    } catch (IOException | UncheckedIOException e) {
      return List.of(); // a folder that may not be read has nothing for us
    }
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
