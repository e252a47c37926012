package io.moe4j.tck;

import java.time.Duration;
import java.util.List;

class InProcessGroupConformanceTest extends CommunicatorConformanceTest {
  @Override
  protected List<KitRank> openGroup(int size, Duration deadline) {
    return Ranks.inProcess(size, deadline);
  }
}
