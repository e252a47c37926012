package com.example.acme;

import io.moe4j.api.spi.BlockOpsProvider;
import io.moe4j.tck.BlockOpsConformanceTest;

class AcmeBlockOpsTest extends BlockOpsConformanceTest {
  @Override
  protected BlockOpsProvider blockOps() {
    return new AcmeBlockOpsProvider();
  }
}
