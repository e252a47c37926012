package io.moe4j.comm.nccl;

/**
 * A version of NCCL.
 *
 * @param major like 2
 * @param minor like 30
 * @param patch like 7
 */
record NcclVersion(int major, int minor, int patch) {
  /** What the bindings and the rules of non-blocking communicators here were written for. */
  static final NcclVersion LEAST = new NcclVersion(2, 27, 0);

  /** Which has {@code ncclAlltoAll}. */
  static final NcclVersion ALL_TO_ALL = new NcclVersion(2, 28, 0);

  static final String ACCEPTED = "2.27 to 2.x";

  private static final int NEW_CODES = 10_000;

  /** {@return the version that {@code ncclGetVersion} tells, like 23007; before 2.9 like 2804} */
  static NcclVersion ofCode(int code) {
    int majors = code >= NEW_CODES ? NEW_CODES : 1000;
    return new NcclVersion(code / majors, code % majors / 100, code % 100);
  }

  int code() {
    return major * NEW_CODES + minor * 100 + patch;
  }

  boolean isAtLeast(NcclVersion other) {
    return code() >= other.code();
  }

  boolean isAccepted() {
    return major == LEAST.major && isAtLeast(LEAST);
  }

  @Override
  public String toString() {
    return major + "." + minor + "." + patch;
  }
}
