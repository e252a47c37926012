package io.moe4j.backend.cpu;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.BackendPriority;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.backend.cpu.kernel.KernelSelection;

/**
 * The {@code cpu} backend: experts on the host processor, weights in their own dtype and place, f32
 * arithmetic, LoRA fused; MXFP4 weights are turned into BF16 by prepare. Fast where {@code
 * jdk.incubator.vector} is loaded, right everywhere.
 */
public final class CpuExpertsBackend implements ExpertsBackend {
  /** The backend's name. */
  public static final String NAME = "cpu";

  /** Made by the service loader. */
  public CpuExpertsBackend() {}

  @Override
  public String name() {
    return NAME;
  }

  @Override
  public String description() {
    return KernelSelection.vectorModulePresent()
        ? "host processor, Vector API"
        : "host processor, scalar (start the JVM with --add-modules "
            + KernelSelection.VECTOR_MODULE
            + " for the fast kernels)";
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
    return Support.checks()
        .require(
            platform.device(DeviceType.CPU).isPresent(),
            Support.Code.DEVICE,
            () -> platform.whyAbsent(DeviceType.CPU))
        .require(
            config
                .uniformScheme()
                .filter(s -> s.isNone() || s.equals(QuantScheme.MXFP4))
                .isPresent(),
            Support.Code.QUANTIZATION,
            () -> "quantisation " + config.quantSchemes() + ", accepted: none, mxfp4")
        .require(
            config.parallel().tpSize() == 1,
            Support.Code.PARALLEL,
            () -> "tensor-parallel size " + config.parallel().tpSize() + ", accepted: 1")
        .result();
  }

  @Override
  public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
    return new CpuExperts(config, weights, KernelSelection.kernels(), ThreadTeam.shared());
  }
}
