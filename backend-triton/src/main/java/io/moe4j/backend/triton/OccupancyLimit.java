package io.moe4j.backend.triton;

/**
 * Shared memory asked for beyond need, so that no multiprocessor takes more programs than an even
 * share. A GEMM of few pairs starts while the shrink before it still holds some of the card; the
 * multiprocessors without a program of that shrink would take all the GEMM's programs they have
 * room for, and then stream their weights one after the other while the rest of the card is idle.
 * Pure.
 */
final class OccupancyLimit {
  /** Of a multiprocessor of capability 9.0, what the driver keeps of a program's share included. */
  static final int SHARED_PER_MULTIPROCESSOR = 228 << 10;

  private static final int RESERVED = 1 << 10;
  private static final int UNIT = 128;

  /** The most that {@link #sharedBytes} adds up to: one program a multiprocessor. */
  static final int MOST = share(1);

  private OccupancyLimit() {}

  /**
   * Dynamic shared memory of a launch.
   *
   * @param programs of the launch
   * @param multiprocessors of the card
   * @param needed by a program
   * @return at least {@code needed}; more where programs of {@code needed} bytes would fit more
   *     than an even share into a multiprocessor
   */
  static int sharedBytes(int programs, int multiprocessors, int needed) {
    return Math.max(needed, share(Math.ceilDiv(programs, multiprocessors)));
  }

  /** The least that one more than {@code each} programs do not fit with. */
  private static int share(int each) {
    return Math.ceilDiv(SHARED_PER_MULTIPROCESSOR / (each + 1) - RESERVED + 1, UNIT) * UNIT;
  }
}
