package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.cuda.CudaDevice;

/** The parts of a block around the experts, on NVIDIA GPUs. */
public final class CudaBlockOpsProvider implements BlockOpsProvider {
  /** For {@link java.util.ServiceLoader}. */
  public CudaBlockOpsProvider() {}

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
  }

  @Override
  public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
    return CudaBlockOps.prepare(CudaDevice.of(device), config, weights);
  }
}
