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

  /** Vectors are heap objects until the optimising compiler is done, which here is chance. */
  @Override
  protected Map<String, String> declined() {
    return Map.of(
        "MOE-5.2",
        "bytes a call are a benchmark's business: on a busy machine the compiler is not done with"
            + " this backend's vectors when the test looks");
  }
}
