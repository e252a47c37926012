package io.moe4j.backend.triton;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.GpuTest;

/** The conformance kit on {@code triton}. */
@GpuTest
public final class TritonConformanceTest extends CudaConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new TritonBackend();
  }
}
