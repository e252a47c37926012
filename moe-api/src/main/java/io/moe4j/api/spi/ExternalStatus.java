package io.moe4j.api.spi;

import java.util.Objects;

/**
 * Something that a backend looks for outside of the project.
 *
 * @param what its name
 * @param usable whether it was found and fits; not being installed is not a fault
 * @param found where and which version, or why not; one clause
 * @param remedy what to do, empty where nothing is to be done
 * @since 0.2.0
 */
public record ExternalStatus(String what, boolean usable, String found, String remedy) {
  /**
   * Checks that nothing is null.
   *
   * @param what its name
   * @param usable whether it was found and fits
   * @param found where and which version, or why not
   * @param remedy what to do
   */
  public ExternalStatus {
    Objects.requireNonNull(what, "what");
    Objects.requireNonNull(found, "found");
    Objects.requireNonNull(remedy, "remedy");
  }
}
