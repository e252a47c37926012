package io.moe4j.integration;

import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.tck.BlockOpsConformanceTest;

class CpuDeviceConformanceTest extends BlockOpsConformanceTest {
  @Override
  protected BlockOpsProvider blockOps() {
    return new CpuBlockOpsProvider();
  }
}
