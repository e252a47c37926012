package io.moe4j.oracle;

import io.moe4j.api.spi.Support;
import java.util.Objects;
import java.util.OptionalInt;

/**
 * One backend's standing in a selection.
 *
 * @param backend who
 * @param priority what it answered; empty where it failed to
 * @param support yes, or every reason why not: the oracle's first, then the backend's own
 */
public record Candidate(FoundBackend backend, OptionalInt priority, Support support) {
  /**
   * Checks the components.
   *
   * @param backend who
   * @param priority its priority
   * @param support its support
   */
  public Candidate {
    Objects.requireNonNull(backend, "backend");
    Objects.requireNonNull(priority, "priority");
    Objects.requireNonNull(support, "support");
  }

  /** {@return the backend's name} */
  public String name() {
    return backend.name();
  }

  /** {@return whether it could run the layer} */
  public boolean isSupported() {
    return support.isSupported();
  }
}
