package io.moe4j.integration;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.checkpoint.MoeCheckpoint;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.Rendezvous;
import java.util.Map;

/** What README.md shows of ranks. */
final class RanksExample {
  private RanksExample() {}

  // <example>
  static MoeLayer rank(MoeCheckpoint model, int index, BackendCatalog catalog, Device device) {
    RankInfo me = RankInfo.fromEnvironment();
    ParallelConfig ranks = ParallelConfig.expert(me.worldSize(), me.rank());
    MoeConfig config = model.config(index).toBuilder().parallel(ranks).build();
    ExpertMap mine = ExpertMap.linear(config.numExperts(), me.worldSize(), me.rank());
    Communicator group =
        Rendezvous.join(me, catalog, device, Rendezvous.layers(Map.of(index, config)));
    return MoeLayer.builder(config, model.weights(index, mine))
        .device(device)
        .communicator(group) // closed by the caller, behind the layer
        .build();
  }
  // </example>
}
