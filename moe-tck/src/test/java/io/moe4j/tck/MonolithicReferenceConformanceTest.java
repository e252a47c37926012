package io.moe4j.tck;

import io.moe4j.api.spi.ExpertsBackend;
import java.util.Map;

class MonolithicReferenceConformanceTest extends ExpertsConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new MonolithicReference();
  }

  @Override
  protected Map<String, String> declined() {
    return Map.of("MOE-5.2", "the reference is written to be read and uses no scratch");
  }
}
