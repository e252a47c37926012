package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExternalBackend;
import io.moe4j.api.spi.ExternalStatus;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.TunableBackend;
import io.moe4j.api.spi.Tuner;
import io.moe4j.api.spi.TuningStatus;
import io.moe4j.api.weights.ExpertWeights;
import java.nio.file.Path;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/**
 * {@code flashinfer-cutlass}: the CUTLASS experts of the FlashInfer that is installed on the
 * machine, in the standard format, without LoRA.
 *
 * @since 0.2.0
 */
public final class FlashInferCutlassBackend implements TunableBackend, ExternalBackend {
  private final Installed installed;
  private final Function<Device, CardKernels> kernels;
  private final FlashInferProperties properties = FlashInferProperties.read();

  /** For {@link java.util.ServiceLoader}; does nothing. */
  public FlashInferCutlassBackend() {
    this(Installed.HERE, CardKernels::of);
  }

  FlashInferCutlassBackend(Installed installed, Function<Device, CardKernels> kernels) {
    this.installed = installed;
    this.kernels = kernels;
  }

  @Override
  public String name() {
    return "flashinfer-cutlass";
  }

  @Override
  public String description() {
    return "CUTLASS experts of the FlashInfer that is installed on the machine";
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
    return false;
  }

  @Override
  public int priority(MoeConfig config, Platform platform) {
    return Priorities.cutlass(config, platform);
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    return CutlassSupport.check(config, platform, installed, properties);
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new CutlassExperts(
        config,
        weights,
        device,
        kernels.apply(device),
        module(properties.options(config), device.info()),
        runner -> TacticTable.of(config, device.info(), runner),
        properties.options(config));
  }

  private FlashInferModule module(FlashInferOptions options, DeviceInfo device) {
    Installed.Answer answer =
        installed
            .cutlass(options, device)
            .orElseThrow(() ->
                new DeviceException("FlashInfer has no fused_moe module for " + device.name()));
    return answer.module().orElseThrow(() -> new DeviceException(answer.reason()));
  }

  @Override
  public Optional<Path> tuningFile() {
    return TacticTable.file();
  }

  @Override
  public TuningStatus tuningStatus(@Nullable DeviceInfo device) {
    return TacticTable.status(
        device,
        Optional.ofNullable(device)
            .flatMap(d -> installed.cutlass(FlashInferOptions.DEFAULT, d))
            .flatMap(Installed.Answer::module));
  }

  @Override
  public Tuner tuner(MoeConfig config, ExpertWeights weights, Device device, Path file) {
    FlashInferOptions options = properties.options(config);
    return new CutlassTuner(
        config,
        weights,
        device,
        kernels.apply(device),
        module(options, device.info()),
        options,
        file);
  }

  @Override
  public List<ExternalStatus> externalStatus(Platform platform) {
    return installed.status(
        platform,
        platform
            .device(DeviceType.CUDA)
            .flatMap(DeviceInfo::capability)
            .flatMap(FlashInferLibrary::cutlassModule));
  }
}
