package io.moe4j.backend.triton;

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
import io.moe4j.backend.triton.launch.TritonExperts;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.cuda.CudaDevice;

/** {@code batched-triton}: experts on NVIDIA GPUs in the batched format, LoRA fused. */
public final class BatchedTritonBackend implements ExpertsBackend {
  private final TritonProperties properties;

  /** For {@link java.util.ServiceLoader}; reads the properties. */
  public BatchedTritonBackend() {
    this(TritonProperties.read());
  }

  /** With other defaults. */
  BatchedTritonBackend(TritonProperties properties) {
    this.properties = properties;
  }

  @Override
  public String name() {
    return "batched-triton";
  }

  @Override
  public String description() {
    return "the kernels of triton over tokens that were dispatched to experts already";
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
        TileTable::choose);
  }
}
