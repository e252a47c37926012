package io.moe4j.api;

/**
 * A checkpoint or adapter file is damaged, lies about itself, or holds what this library does not
 * know.
 *
 * @since 0.1.0
 */
public class CheckpointException extends MoeException {
  private static final long serialVersionUID = 1L;

  /**
   * Creates an exception with a message.
   *
   * @param message names the file, the tensor or key, what was found and what is accepted
   */
  public CheckpointException(String message) {
    super(message);
  }

  /**
   * Creates an exception with a message and its cause.
   *
   * @param message names the file, the tensor or key, what was found and what is accepted
   * @param cause the parser's or the file system's error
   */
  public CheckpointException(String message, Throwable cause) {
    super(message, cause);
  }
}
