package io.moe4j.tck;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.Device;
import java.util.Objects;

/**
 * One rank of a group under test, with the device that its tensors are on. The kit closes both.
 *
 * @param communicator of this rank
 * @param device of this rank
 * @since 0.2.0
 */
public record KitRank(Communicator communicator, Device device) {
  /**
   * Checks the components.
   *
   * @param communicator not null
   * @param device not null
   */
  public KitRank {
    Objects.requireNonNull(communicator, "communicator");
    Objects.requireNonNull(device, "device");
  }
}
