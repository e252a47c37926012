package io.moe4j.comm.nccl;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.tck.ExchangeConformanceTest;
import io.moe4j.tck.KitRank;
import java.time.Duration;
import java.util.List;

/** Exchanges between GPUs, over the stand-in and with kernels on the host. */
abstract class HostExchangeConformanceTest extends ExchangeConformanceTest {
  @Override
  protected List<Integer> sizes() {
    return List.of(2, 3, 4);
  }

  @Override
  protected List<KitRank> openGroup(int size, Duration deadline) {
    return HostGroup.open(size, deadline).stream()
        .map(r -> new KitRank(r.communicator(), r.card()))
        .toList();
  }

  @Override
  protected BlockOpsProvider blockOps(Device device) {
    return new BlockOpsProvider() {
      @Override
      public DeviceType deviceType() {
        return DeviceType.CUDA;
      }

      @Override
      public BlockOps prepare(MoeConfig config, MoeLayerWeights weights, Device on) {
        return HostKernels.block(config, weights);
      }
    };
  }
}
