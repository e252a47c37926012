package io.moe4j.comm.nccl;

/**
 * How many calls this rank has made, and what the last ones were: every rank makes the same, so
 * where one waits in vain a comparison says which rank is to blame. Safe for several threads.
 */
final class CallLog {
  private static final int KEPT = 256;

  private final String[] last = new String[KEPT];
  private long made;

  /** {@return the number of a call that begins, from 1 on} */
  synchronized long begin(String what) {
    made++;
    last[(int) (made % KEPT)] = what;
    return made;
  }

  synchronized long made() {
    return made;
  }

  /** {@return what a call was, empty if it was not made yet or too long ago} */
  synchronized String what(long number) {
    return number < 1 || number > made || number <= made - KEPT ? "" : last[(int) (number % KEPT)];
  }
}
