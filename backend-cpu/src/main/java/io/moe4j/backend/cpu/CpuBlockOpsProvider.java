package io.moe4j.backend.cpu;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.backend.cpu.options.CpuProperties;

/** The parts of a block around the experts, on the host processor. */
public final class CpuBlockOpsProvider implements BlockOpsProvider {
  private final CpuProperties properties = CpuProperties.read();

  /** For {@link java.util.ServiceLoader}. */
  public CpuBlockOpsProvider() {}

  @Override
  public DeviceType deviceType() {
    return DeviceType.CPU;
  }

  /** Does everything that a config can ask, where it is known how. */
  @Override
  public Support isSupportedConfig(MoeConfig config) {
    String fault = properties.fault(config);
    return Support.checks()
        .require(fault == null, Support.Code.OTHER, () -> String.valueOf(fault))
        .result();
  }

  @Override
  public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
    return new CpuBlockOps(config, weights, Mlps.of(properties.options(config)));
  }
}
