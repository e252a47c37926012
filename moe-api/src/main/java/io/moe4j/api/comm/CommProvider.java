package io.moe4j.api.comm;

import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import java.util.Optional;

/**
 * Opens communicators of one kind. Found by {@link java.util.ServiceLoader}. Absent is not broken:
 * a machine without the library gives a reason, never an exception.
 *
 * @since 0.2.0
 */
public interface CommProvider {
  /** {@return stable lower-case id, like {@code nccl}} */
  String name();

  /** {@return version of the library that carries it, which all ranks share; empty without one} */
  default String version() {
    return "";
  }

  /** {@return the devices whose memory it sends} */
  DeviceType deviceType();

  /**
   * Whether it could work on a machine. Never throws and never joins anything.
   *
   * @param platform the machine
   * @return empty for yes, or why not, with the offending value and what is accepted
   */
  Optional<String> whyUnsupported(Platform platform);

  /** {@return a name for a new group, made by rank 0 and handed to all ranks by the launcher} */
  String newGroup();

  /**
   * A name for a new group whose rank 0 the others reach by an address; the same as {@link
   * #newGroup()} where names hold no address.
   *
   * @param host an address or name of rank 0's host, as the other ranks know it
   * @return the name
   */
  default String newGroup(String host) {
    return newGroup();
  }

  /**
   * Joins a group; returns when all ranks have come.
   *
   * @param config the group, and this process's rank in it
   * @param device of {@link #deviceType}; outlives the communicator
   * @return the communicator, owned by the caller
   * @throws CommException if a rank does not come within the deadline, or the ranks disagree
   */
  Communicator open(CommConfig config, Device device);
}
