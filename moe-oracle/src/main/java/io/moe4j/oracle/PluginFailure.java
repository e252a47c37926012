package io.moe4j.oracle;

import io.moe4j.api.spi.Support;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Something that looked like a plugin and could not be used: a row of every table, never a crash.
 *
 * @param name the provider class where it is known, else the jar or directory
 * @param origin where it lies
 * @param reason what is wrong with it
 * @param cause what was thrown, null where nothing was
 */
public record PluginFailure(
    String name, PluginOrigin origin, Support.Reason reason, @Nullable Throwable cause) {
  /**
   * Checks the components.
   *
   * @param name provider class or jar
   * @param origin where it lies
   * @param reason what is wrong
   * @param cause what was thrown or null
   */
  public PluginFailure {
    Objects.requireNonNull(name, "name");
    Objects.requireNonNull(origin, "origin");
    Objects.requireNonNull(reason, "reason");
  }

  static PluginFailure of(
      String name, PluginOrigin origin, String message, @Nullable Throwable cause) {
    return new PluginFailure(
        name, origin, new Support.Reason(Support.Code.LOAD_FAILURE, message), cause);
  }
}
