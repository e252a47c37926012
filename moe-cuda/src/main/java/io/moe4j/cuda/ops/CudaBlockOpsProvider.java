package io.moe4j.cuda.ops;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaProperties;
import java.util.ArrayList;
import java.util.List;

/** The parts of a block around the experts, on NVIDIA GPUs. */
public final class CudaBlockOpsProvider implements BlockOpsProvider {
  /** For {@link java.util.ServiceLoader}. */
  public CudaBlockOpsProvider() {}

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
  }

  /** Refuses every layer while a setting of {@link CudaProperties} is mistyped. */
  @Override
  public Support isSupportedConfig(MoeConfig config) {
    Support around = BlockOpsProvider.super.isSupportedConfig(config);
    String fault = CudaProperties.fault();
    if (fault == null) {
      return around;
    }
    List<Support.Reason> all = new ArrayList<>(around.reasons());
    all.add(new Support.Reason(Support.Code.OTHER, fault));
    return new Support.No(all);
  }

  @Override
  public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device device) {
    if (isSupportedConfig(config) instanceof Support.No no) {
      throw new IllegalArgumentException("this layer cannot run on CUDA: " + no);
    }
    return CudaBlockOps.prepare(CudaDevice.of(device), config, weights);
  }
}
