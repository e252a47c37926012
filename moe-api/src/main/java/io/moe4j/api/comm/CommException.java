package io.moe4j.api.comm;

import io.moe4j.api.MoeException;
import org.jspecify.annotations.Nullable;

/**
 * A group of ranks has ended: a rank failed, or did not come in time. The message names the rank
 * and the cause.
 *
 * @since 0.2.0
 */
public class CommException extends MoeException {
  private static final long serialVersionUID = 1L;

  private final int rank;

  /**
   * Creates an exception with a message and its cause.
   *
   * @param rank which one failed or was missing
   * @param message what happened
   * @param cause of the failure, or null
   */
  public CommException(int rank, String message, @Nullable Throwable cause) {
    super(message, cause);
    this.rank = rank;
  }

  /** {@return which rank failed or was missing} */
  public int rank() {
    return rank;
  }
}
