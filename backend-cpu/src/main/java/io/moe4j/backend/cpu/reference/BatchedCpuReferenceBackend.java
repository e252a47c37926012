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

/** {@code batched-cpu-reference}: as {@link CpuReferenceBackend}, for tokens sorted by expert. */
public final class BatchedCpuReferenceBackend implements ExpertsBackend {
  /** For {@link java.util.ServiceLoader}. */
  public BatchedCpuReferenceBackend() {}

  @Override
  public String name() {
    return "batched-cpu-reference";
  }

  @Override
  public String description() {
    return "float64 reference on the host processor for batched activations, slow";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  @Override
  public ActivationFormat activationFormat() {
    return ActivationFormat.BATCHED;
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
    return CpuReferenceBackend.support(platform);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new ReferenceExperts(config, weights);
  }
}
