package io.moe4j.comm.nccl;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.tck.ExchangeConformanceTest;
import io.moe4j.tck.KitRank;
import java.time.Duration;
import java.util.List;

/** Sums over the stand-in, of ranks that all have the same tokens. */
class DeviceAllReduceConformanceTest extends ExchangeConformanceTest {
  @Override
  protected ExpertExchangeProvider provider() {
    return new DeviceAllReduceProvider(_ -> new HostKernels());
  }

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
