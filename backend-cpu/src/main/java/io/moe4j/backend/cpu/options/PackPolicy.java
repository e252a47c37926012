package io.moe4j.backend.cpu.options;

import java.util.Locale;

/**
 * Whether weights are laid out anew for the kernels in C, which takes as much memory as they have,
 * or used in place by those in Java.
 *
 * @since 0.2.0
 */
public enum PackPolicy {
  /**
   * If the packed weights leave a quarter of the memory that the system could give when the layer
   * is prepared, page cache included.
   */
  AUTO,
  /** Without asking. */
  ALWAYS,
  /** Not at all. */
  NEVER;

  /** {@return its name in lower case, as properties have it and tools print it} */
  public String text() {
    return name().toLowerCase(Locale.ROOT);
  }
}
