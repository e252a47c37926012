package io.moe4j.backend.cpu.reference;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.reference.ReferenceExperts;

/**
 * {@code cpu-reference}: float64 experts, one token after the other. Right and slow; the last
 * choice of the oracle, and what everything else is compared with.
 */
public final class CpuReferenceBackend implements ExpertsBackend {
  /** For {@link java.util.ServiceLoader}. */
  public CpuReferenceBackend() {}

  @Override
  public String name() {
    return "cpu-reference";
  }

  @Override
  public String description() {
    return "float64 reference on the host processor, slow";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  @Override
  public ActivationFormat activationFormat() {
    return ActivationFormat.STANDARD;
  }

  @Override
  public boolean supportsLora() {
    return true;
  }

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return BackendPriority.REFERENCE;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return support(platform);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new ReferenceExperts(config, weights);
  }

  static Support support(Platform platform) {
    return Support.checks()
        .require(
            platform.device(DeviceType.CPU).isPresent(),
            Support.Code.DEVICE,
            () -> platform.whyAbsent(DeviceType.CPU))
        .result();
  }
}
