package io.moe4j.backend.marlin;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.TunableBackend;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.cuda.CudaDevice;
import java.nio.file.Path;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** {@code marlin}: packed experts on NVIDIA GPUs in the standard format, LoRA fused. */
public final class MarlinBackend implements TunableBackend {
  private final MarlinProperties properties;

  /** For {@link java.util.ServiceLoader}; reads the properties. */
  public MarlinBackend() {
    this(MarlinProperties.read());
  }

  /** With other defaults. */
  MarlinBackend(MarlinProperties properties) {
    this.properties = properties;
  }

  @Override
  public String name() {
    return "marlin";
  }

  @Override
  public String description() {
    return "experts on NVIDIA GPUs whose weights stay packed (int4, int8, FP8, FP4), LoRA fused into the products";
  }

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
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
        MarlinTuning.forLayer(config, device.info(), weights.numExperts()));
  }

  @Override
  public Optional<Path> tuningFile() {
    return MarlinTuning.path();
  }

  @Override
  public TuningStatus tuningStatus(@Nullable DeviceInfo device) {
    return MarlinTuning.status(device);
  }

  @Override
  public Tuner tuner(MoeConfig config, ExpertWeights weights, Device device, Path file) {
    return MarlinTuning.tuner(config, weights, CudaDevice.of(device), file);
  }
}
