package io.moe4j.api.spi;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import org.jspecify.annotations.Nullable;

/**
 * Makes exchanges of one kind. Found by {@link java.util.ServiceLoader}; the layer takes the one of
 * the highest priority that fits its ranks and the format of the chosen experts.
 *
 * @since 0.2.0
 */
public interface ExpertExchangeProvider {
  /** {@return stable lower-case id, unique on the class path} */
  String name();

  /** {@return larger wins among those that fit} */
  int priority();

  /**
   * Whether it fits. Pure: never throws, never communicates.
   *
   * @param config the layer; {@link MoeConfig#activationFormat} is what the experts take
   * @param communicator the group, or null on one rank
   * @return yes, or all reasons
   */
  Support isSupported(MoeConfig config, @Nullable Communicator communicator);

  /**
   * Makes one.
   *
   * @param config the layer
   * @param communicator the group, or null on one rank; stays the caller's
   * @param block the device's own operations; stays the caller's
   * @param device of the layer
   * @return the exchange, owned by the caller
   */
  ExpertExchange open(
      MoeConfig config, @Nullable Communicator communicator, BlockOps block, Device device);
}
