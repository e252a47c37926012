package io.moe4j.api;

import org.jspecify.annotations.Nullable;

/**
 * Root of what moe4j throws on purpose. Programming errors (a wrong shape, an id out of range) are
 * {@link IllegalArgumentException} or {@link IllegalStateException}; everything that depends on
 * files, machines or plugins is a {@code MoeException}. The message is one readable paragraph.
 *
 * @since 0.1.0
 */
public class MoeException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  /**
   * Creates an exception with a message.
   *
   * @param message what went wrong, with the offending value and what is accepted
   */
  public MoeException(String message) {
    super(message);
  }

  /**
   * Creates an exception with a message and its cause.
   *
   * @param message what went wrong, with the offending value and what is accepted
   * @param cause what it was caused by, or null
   */
  public MoeException(String message, @Nullable Throwable cause) {
    super(message, cause);
  }
}
