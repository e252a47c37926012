package io.moe4j.tck;

import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;

class CpuBlockOpsConformanceTest extends BlockOpsConformanceTest {
  @Override
  protected BlockOpsProvider blockOps() {
    return new CpuBlockOpsProvider();
  }
}
