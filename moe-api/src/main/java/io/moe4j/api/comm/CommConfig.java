package io.moe4j.api.comm;

import java.time.Duration;
import java.util.Objects;

/**
 * The group to join, and this process's rank in it.
 *
 * @param group what all ranks of the group have in common, handed out by rank 0: NCCL's 128 bytes
 *     in hexadecimal, a host and port, or any name within one JVM
 * @param rank this rank
 * @param size ranks of the group
 * @param deadline how long a call may wait for the others
 * @since 0.2.0
 */
public record CommConfig(String group, int rank, int size, Duration deadline) {
  /** How long a call waits unless said otherwise. */
  public static final Duration DEFAULT_DEADLINE = Duration.ofSeconds(30);

  /**
   * Checks the components.
   *
   * @param group not blank
   * @param rank {@code 0..size-1}
   * @param size at least 1
   * @param deadline positive
   */
  public CommConfig {
    Objects.requireNonNull(group, "group");
    Objects.requireNonNull(deadline, "deadline");
    if (group.isBlank()) {
      throw new IllegalArgumentException("group is blank, must name what the ranks have in common");
    }
    if (size < 1 || rank < 0 || rank >= size) {
      throw new IllegalArgumentException(
          "rank is " + rank + " of " + size + ", must be 0.." + (size - 1));
    }
    if (deadline.isNegative() || deadline.isZero()) {
      throw new IllegalArgumentException("deadline is " + deadline + ", must be positive");
    }
  }

  /**
   * With the default deadline.
   *
   * @param group what the ranks have in common
   * @param rank this rank
   * @param size ranks of the group
   * @return the config
   */
  public static CommConfig of(String group, int rank, int size) {
    return new CommConfig(group, rank, size, DEFAULT_DEADLINE);
  }
}
