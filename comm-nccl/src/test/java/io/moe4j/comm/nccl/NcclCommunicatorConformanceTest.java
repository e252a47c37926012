package io.moe4j.comm.nccl;

import io.moe4j.tck.CommunicatorConformanceTest;
import io.moe4j.tck.KitRank;
import java.time.Duration;
import java.util.List;

/** The kit over the stand-in, which sums in the order of ranks. */
class NcclCommunicatorConformanceTest extends CommunicatorConformanceTest {
  @Override
  protected List<KitRank> openGroup(int size, Duration deadline) {
    return HostGroup.open(size, deadline).stream()
        .map(r -> new KitRank(r.communicator(), r.card()))
        .toList();
  }
}
