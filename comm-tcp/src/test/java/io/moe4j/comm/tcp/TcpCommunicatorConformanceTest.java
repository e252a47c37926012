package io.moe4j.comm.tcp;

import io.moe4j.tck.CommunicatorConformanceTest;
import io.moe4j.tck.KitRank;
import java.time.Duration;
import java.util.List;

class TcpCommunicatorConformanceTest extends CommunicatorConformanceTest {
  @Override
  protected List<KitRank> openGroup(int size, Duration deadline) {
    return TcpGroup.open(size, deadline).stream().map(c -> new KitRank(c, TcpGroup.HOST)).toList();
  }
}
