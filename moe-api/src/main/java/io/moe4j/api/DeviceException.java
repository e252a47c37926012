package io.moe4j.api;

/**
 * A device call failed. The message carries the call, the device's name for the error, and the
 * sizes involved.
 *
 * @since 0.1.0
 */
public class DeviceException extends MoeException {
  private static final long serialVersionUID = 1L;

  /**
   * Creates an exception with a message.
   *
   * @param message the call, the device's error name, the sizes
   */
  public DeviceException(String message) {
    super(message);
  }

  /**
   * Creates an exception with a message and its cause.
   *
   * @param message the call, the device's error name, the sizes
   * @param cause what it was caused by
   */
  public DeviceException(String message, Throwable cause) {
    super(message, cause);
  }
}
