package io.moe4j.integration;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.tck.ExpertsConformanceTest;
import java.util.Map;

class CpuBackendConformanceTest extends ExpertsConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new CpuExpertsBackend();
  }

  /** Known and open, see backend-cpu/README.md: not a limit of the machine but of the kernels. */
  @Override
  protected Map<String, String> declined() {
    return Map.of(
        "MOE-5.2",
        "where the sum of a vector's lanes is not inlined, each dot product leaves an object of 48"
            + " bytes");
  }
}
