package io.moe4j.backend.marlin;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.GpuTest;

/** The conformance kit on {@code batched-marlin}. */
@GpuTest
public final class BatchedMarlinConformanceTest extends CudaConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new BatchedMarlinBackend();
  }
}
