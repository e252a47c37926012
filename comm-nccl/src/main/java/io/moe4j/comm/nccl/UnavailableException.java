package io.moe4j.comm.nccl;

/**
 * NCCL cannot be used here. The message is the reason that users see: one clause that says what is
 * missing and where it was looked for. Never leaves this package.
 */
final class UnavailableException extends Exception {
  private static final long serialVersionUID = 1L;

  UnavailableException(String message) {
    super(message);
  }

  UnavailableException(String message, Throwable cause) {
    super(message, cause);
  }

  String reason() {
    return String.valueOf(getMessage());
  }
}
