package io.moe4j.cuda.tuning;

import io.moe4j.api.config.SystemSettings;
import java.nio.file.InvalidPathException;
import java.nio.file.Path;
import java.util.Locale;
import java.util.Optional;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * Where a backend's tuned choices are kept: a system property names a file, or is {@code off};
 * without it, the cache directory of the operating system's convention ({@code $XDG_CACHE_HOME} or
 * {@code ~/.cache}, {@code ~/Library/Caches}, {@code %LOCALAPPDATA%}) and in it {@code moe4j/} and
 * the backend's file.
 *
 * @param property name of the system property, read when asked
 * @param name of the file, like {@code triton-tiles.json}
 * @since 0.2.0
 */
public record TuningPlace(String property, String name) {
  /** No file is read. */
  static final String OFF = "off";

  private static final String DIRECTORY = "moe4j";

  /** {@return the place for this process; empty if it was turned off or there is none} */
  public Optional<Path> current() {
    return find(
        SystemSettings.text(property),
        name,
        System.getProperty("os.name", ""),
        System.getProperty("user.home"),
        System::getenv);
  }

  /** {@return whether the user named a file} */
  boolean isNamed() {
    return SystemSettings.text(property) != null && !isOff();
  }

  /** {@return whether the user turned it off} */
  boolean isOff() {
    String value = SystemSettings.text(property);
    return value != null && value.equalsIgnoreCase(OFF);
  }

  /**
   * The rule. Relative directories in the environment are not taken, as XDG says.
   *
   * @param property what it is set to
   * @param name of the file in the cache directory
   * @param system name of the operating system
   * @param home the user's directory
   * @param environment its variables
   * @return the file, absolute
   */
  static Optional<Path> find(
      @Nullable String property,
      String name,
      String system,
      @Nullable String home,
      Function<String, @Nullable String> environment) {
    if (property != null && !property.isBlank()) {
      return OFF.equalsIgnoreCase(property) ? Optional.empty() : path(property);
    }
    String os = system.toLowerCase(Locale.ROOT);
    Optional<Path> user = absolute(home);
    Optional<Path> cache;
    if (os.startsWith("windows")) {
      cache =
          absolute(environment.apply("LOCALAPPDATA"))
              .or(() -> user.map(h -> h.resolve("AppData").resolve("Local")));
    } else if (os.startsWith("mac")) {
      cache = user.map(h -> h.resolve("Library").resolve("Caches"));
    } else {
      cache =
          absolute(environment.apply("XDG_CACHE_HOME"))
              .or(() -> user.map(h -> h.resolve(".cache")));
    }
    return cache.map(c -> c.resolve(DIRECTORY).resolve(name));
  }

  private static Optional<Path> absolute(@Nullable String directory) {
    return directory == null || directory.isBlank()
        ? Optional.empty()
        : path(directory).filter(p -> Path.of(directory).isAbsolute());
  }

  private static Optional<Path> path(String text) {
    try {
      return Optional.of(Path.of(text).toAbsolutePath());
    } catch (InvalidPathException e) {
      return Optional.empty();
    }
  }
}
