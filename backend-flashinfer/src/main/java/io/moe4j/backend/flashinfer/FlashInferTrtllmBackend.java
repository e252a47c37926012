package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.ExternalBackend;
import io.moe4j.api.spi.ExternalStatus;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import java.util.List;
import java.util.function.Function;

/**
 * {@code flashinfer-trtllm}: the TRTLLM experts of the FlashInfer that is installed on the machine,
 * for Blackwell (capability 10.x), monolithic, with LoRA.
 *
 * @since 0.2.0
 */
public final class FlashInferTrtllmBackend implements ExpertsBackend, ExternalBackend {
  private final Installed installed;
  private final Function<Device, CardKernels> kernels;
  private final FlashInferProperties properties = FlashInferProperties.read();

  /** For {@link java.util.ServiceLoader}; does nothing. */
  public FlashInferTrtllmBackend() {
    this(Installed.HERE, CardKernels::of);
  }

  FlashInferTrtllmBackend(Installed installed, Function<Device, CardKernels> kernels) {
    this.installed = installed;
    this.kernels = kernels;
  }

  @Override
  public String name() {
    return "flashinfer-trtllm";
  }

  @Override
  public String description() {
    return "TRTLLM experts of the FlashInfer that is installed on the machine, for Blackwell";
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
    return Priorities.trtllm();
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return TrtllmSupport.check(config, platform, installed, properties);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    DeviceInfo info = device.info();
    Installed.Answer answer =
        installed
            .trtllm(properties.options(config), info)
            .orElseThrow(
                () -> new DeviceException("FlashInfer has no TRTLLM experts for " + info.name()));
    FlashInferModule module =
        answer.module().orElseThrow(() -> new DeviceException(answer.reason()));
    return new TrtllmExperts(config, weights, device, kernels.apply(device), module);
  }

  @Override
  public List<ExternalStatus> externalStatus(Platform platform) {
    return installed.status(
        platform,
        platform
            .device(DeviceType.CUDA)
            .flatMap(DeviceInfo::capability)
            .flatMap(FlashInferLibrary::trtllmModule));
  }
}
