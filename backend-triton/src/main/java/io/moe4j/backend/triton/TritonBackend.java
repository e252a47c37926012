package io.moe4j.backend.triton;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.TunableBackend;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.triton.launch.TritonExperts;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.backend.triton.tuning.TritonTuner;
import io.moe4j.backend.triton.tuning.TuningCache;
import io.moe4j.cuda.CudaDevice;
import java.nio.file.Path;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/** {@code triton}: experts on NVIDIA GPUs in the standard format, LoRA fused. */
public final class TritonBackend implements TunableBackend {
  private final TritonProperties properties;

  /** For {@link java.util.ServiceLoader}; reads the properties. */
  public TritonBackend() {
    this(TritonProperties.read());
  }

  /** With other defaults. */
  TritonBackend(TritonProperties properties) {
    this.properties = properties;
  }

  @Override
  public String name() {
    return "triton";
  }

  @Override
  public String description() {
    return "Triton kernels compiled ahead of time, LoRA fused into the grouped GEMMs";
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
    return BackendPriority.GPU_PORTABLE;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return TritonSupport.check(config, platform, properties);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return TritonExperts.prepare(
        config,
        weights,
        CudaDevice.of(device),
        properties.options(config).lora(),
        TuningCache.forLayer(config, device.info(), weights.numExperts()));
  }

  @Override
  public Optional<Path> tuningFile() {
    return TuningCache.path();
  }

  @Override
  public TuningStatus tuningStatus(@Nullable DeviceInfo device) {
    return TuningCache.status(device);
  }

  @Override
  public Tuner tuner(MoeConfig config, ExpertWeights weights, Device device, Path file) {
    return TritonTuner.of(config, weights, CudaDevice.of(device), file);
  }
}
