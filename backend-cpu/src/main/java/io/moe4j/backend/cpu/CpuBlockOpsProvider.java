package io.moe4j.backend.cpu;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.backend.cpu.kernel.KernelSelection;

/** The parts of a block around the experts, on the host processor. */
public final class CpuBlockOpsProvider implements BlockOpsProvider {
  /** For {@link java.util.ServiceLoader}. */
  public CpuBlockOpsProvider() {}

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  @Override
  public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
    return new CpuBlockOps(config, weights, KernelSelection.kernels(), ThreadTeam.shared());
  }
}
