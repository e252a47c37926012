package io.moe4j.api.spi;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.weights.ExpertWeights;

/**
 * What a backend jar provides: one way to compute the routed experts of a MoE layer. Found by
 * {@link java.util.ServiceLoader}; the implementation has a public no-argument constructor that
 * does nothing costly and never fails for a missing device or driver. The rules are in the package
 * documentation.
 *
 * @since 0.1.0
 */
public interface ExpertsBackend {
  /**
   * {@return stable lower-case id, letters, digits and dashes, unique on the class path; what
   * {@code --backend} takes}
   */
  String name();

  /** {@return a one-line description} */
  String description();

  /** {@return the devices it computes on; a {@link DeviceProvider} of this type opens them} */
  DeviceType deviceType();

  /** {@return what its experts take} */
  ActivationFormat activationFormat();

  /** {@return whether the experts it prepares are {@link LoraExperts}} */
  boolean supportsLora();

  /**
   * Priority for a layer that it supports; the largest wins, ties are broken by name. See
   * {@link BackendPriority}.
   *
   * @param config the layer
   * @param platform the machine
   * @return the priority
   */
  int priority(MoeConfig config, Platform platform);

  /**
   * Whether it could run a layer on a machine. A pure function of its arguments: never throws,
   * never touches a device, and says <em>every</em> reason why not. The oracle itself checks {@link
   * #deviceType()}, {@link #activationFormat()} and {@link #supportsLora()}; a backend need not
   * repeat those.
   *
   * @param config the layer
   * @param platform the machine
   * @return yes, or all reasons
   */
  Support isSupportedConfig(MoeConfig config, Platform platform);

  /**
   * Validates, repacks, uploads. May be slow. Not called unless {@link #isSupportedConfig} said
   * yes.
   *
   * @param config the layer
   * @param weights fits {@code config} (checked by the caller); views that stay valid until the
   *     result is closed
   * @param device an open device of {@link #deviceType()}; outlives the result
   * @return experts, owned by the caller
   */
  Experts prepare(MoeConfig config, ExpertWeights weights, Device device);
}
