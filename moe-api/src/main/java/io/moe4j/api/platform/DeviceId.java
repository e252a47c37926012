package io.moe4j.api.platform;

import java.util.Objects;

/**
 * One device of a machine.
 *
 * @param type its family
 * @param ordinal {@code 0..} within the family
 * @since 0.1.0
 */
public record DeviceId(DeviceType type, int ordinal) {
  /** The host processor. */
  public static final DeviceId CPU = new DeviceId(DeviceType.CPU, 0);

  /**
   * Checks the components.
   *
   * @param type its family
   * @param ordinal not negative
   */
  public DeviceId {
    Objects.requireNonNull(type, "type");
    if (ordinal < 0) {
      throw new IllegalArgumentException("ordinal is " + ordinal + ", must not be negative");
    }
  }

  /**
   * Like {@code cuda:0}.
   *
   * @return type and ordinal
   */
  @Override
  public String toString() {
    return type + ":" + ordinal;
  }
}
