package io.moe4j.cli;

/** What the command's exit code says. Stable: scripts depend on it. */
final class ExitCode {
  /** Done. */
  static final int OK = 0;

  /** It ran, and a check failed: results differ from the recorded ones, or doctor found a fault. */
  static final int CHECK_FAILED = 1;

  /** The command line is wrong: unknown option, missing value, options that contradict. */
  static final int USAGE = 2;

  /** A checkpoint, adapter or tensor file is missing, damaged, or of a kind that is not known. */
  static final int BAD_INPUT = 3;

  /** An adapter was refused: it changes what cannot be changed, or is larger than allowed. */
  static final int ADAPTER_REFUSED = 4;

  /** No backend fits, or the one asked for does not. */
  static final int UNSUPPORTED = 5;

  /** A device failed or has too little memory, or another rank ended. */
  static final int DEVICE = 6;

  /** The result could not be written. */
  static final int OUTPUT = 7;

  /** A fault in moe4j itself, or in a plugin. */
  static final int INTERNAL = 70;

  /** Who read standard output closed it, as {@code head} does: what a shell calls SIGPIPE. */
  static final int CLOSED_PIPE = 141;

  /** What {@code moe --help} prints of the above. */
  static final String[] HELP = {
    "0:done",
    "1:it ran, and a check failed (results differ, or doctor found a fault)",
    "2:wrong command line",
    "3:an input file is missing, damaged or of an unknown kind",
    "4:an adapter was refused",
    "5:no backend fits, or not the one asked for",
    "6:a device failed or has too little memory, or another rank ended",
    "7:the result could not be written",
    "70:a fault in moe4j or in a plugin",
    "141:who read the output closed the pipe"
  };

  private ExitCode() {}
}
