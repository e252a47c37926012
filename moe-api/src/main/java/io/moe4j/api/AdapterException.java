package io.moe4j.api;

/**
 * An adapter cannot be used as asked: refused content, rank over the maximum, no free slot, unknown
 * name.
 *
 * @since 0.1.0
 */
public class AdapterException extends MoeException {
  private static final long serialVersionUID = 1L;

  /**
   * Creates an exception with a message.
   *
   * @param message names the adapter, what was asked and what is accepted
   */
  public AdapterException(String message) {
    super(message);
  }

  /**
   * Creates an exception with a message and its cause.
   *
   * @param message names the adapter, what was asked and what is accepted
   * @param cause what it was caused by
   */
  public AdapterException(String message, Throwable cause) {
    super(message, cause);
  }
}
