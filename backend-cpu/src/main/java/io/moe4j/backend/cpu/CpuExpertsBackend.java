package io.moe4j.backend.cpu;

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
import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.options.CpuOptions;
import io.moe4j.backend.cpu.options.CpuProperties;

/**
 * The {@code cpu} backend: experts on the host processor, weights in their own dtype or codes, f32
 * arithmetic, LoRA fused. Every quantisation scheme; activations stay unquantised unless {@link
 * CpuOptions} ask for more speed. Fast where its kernels in C load or {@code jdk.incubator.vector}
 * is there, right everywhere.
 */
public final class CpuExpertsBackend implements ExpertsBackend {
  /** The backend's name. */
  public static final String NAME = "cpu";

  private final CpuProperties properties = CpuProperties.read();

  /** Made by the service loader. */
  public CpuExpertsBackend() {}

  @Override
  public String name() {
    return NAME;
  }

  @Override
  public String description() {
    return "host processor, "
        + Mlps.describe(properties)
        + (KernelSelection.vectorModulePresent()
            ? ""
            : "; start the JVM with --add-modules "
                + KernelSelection.VECTOR_MODULE
                + " for a fast router");
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
    return BackendPriority.CPU;
  }

  @Override
  public Support isSupportedConfig(MoeConfig config, Platform platform) {
    String fault = properties.fault(config);
    return Support.checks()
        .require(fault == null, Support.Code.OTHER, () -> String.valueOf(fault))
        .require(
            platform.device(DeviceType.CPU).isPresent(),
            Support.Code.DEVICE,
            () -> platform.whyAbsent(DeviceType.CPU))
        .require(
            !config.quantizedActivations(),
            Support.Code.QUANTIZATION,
            () -> "quantised activations of " + config.quantSchemes() + ", accepted: unquantised")
        .result();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new CpuExperts(config, weights, Mlps.of(properties.options(config)));
  }
}
