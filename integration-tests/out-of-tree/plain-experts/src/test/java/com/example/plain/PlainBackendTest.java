package com.example.plain;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.ExpertsConformanceTest;
import java.util.Map;

class PlainBackendTest extends ExpertsConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new PlainBackend();
  }

  /** What a SHOULD asks for and this backend does not do; delete this method if your backend follows every recommendation. */
  @Override
  protected Map<String, String> declined() {
    return Map.of("MOE-5.2", "an example to read: every element goes through Tensor.get");
  }
}
