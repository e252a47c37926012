package io.moe4j.backend.marlin;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.GpuTest;

/** The conformance kit on {@code marlin}. */
@GpuTest
public final class MarlinConformanceTest extends CudaConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new MarlinBackend();
  }
}
