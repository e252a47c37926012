package io.moe4j.integration;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.tck.ExpertsConformanceTest;

class CpuBackendConformanceTest extends ExpertsConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new CpuExpertsBackend();
  }
}
