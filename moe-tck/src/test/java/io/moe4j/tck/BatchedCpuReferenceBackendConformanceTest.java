package io.moe4j.tck;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.backend.cpu.reference.BatchedCpuReferenceBackend;
import java.util.Map;

class BatchedCpuReferenceBackendConformanceTest extends ExpertsConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new BatchedCpuReferenceBackend();
  }

  @Override
  protected Map<String, String> declined() {
    return Map.of("MOE-5.2", "the reference is written to be read and uses no scratch");
  }
}
