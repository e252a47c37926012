package com.example.acme;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.ExpertsConformanceTest;
import java.util.Map;

class AcmeBackendTest extends ExpertsConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new AcmeBackend();
  }

  @Override
  protected Map<String, String> declined() {
    return Map.of("MOE-5.2", "the reference stands for the card's kernels, and allocates");
  }
}
