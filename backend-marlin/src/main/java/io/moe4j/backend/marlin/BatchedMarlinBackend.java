package io.moe4j.backend.marlin;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;

/** {@code batched-marlin}: packed experts on NVIDIA GPUs in the batched format, LoRA fused. */
public final class BatchedMarlinBackend implements ExpertsBackend {
  private final MarlinProperties properties;

  /** For {@link java.util.ServiceLoader}; reads the properties. */
  public BatchedMarlinBackend() {
    this(MarlinProperties.read());
  }

  /** With other defaults. */
  BatchedMarlinBackend(MarlinProperties properties) {
    this.properties = properties;
  }

  @Override
  public String name() {
    return "batched-marlin";
  }

  @Override
  public String description() {
    return "the kernels of marlin over tokens that were dispatched to experts already";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
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
    return MarlinSupport.PRIORITY;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return MarlinSupport.check(config, platform, properties);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return MarlinExperts.prepare(
        config,
        weights,
        CudaDevice.of(device),
        properties.options(config).lora(),
        MarlinPlan::choose);
  }
}
