package io.moe4j.backend.marlin;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.tck.GpuTest;

/** The conformance kit on {@code marlin} with the deltas of a punica wrapper. */
@GpuTest
public final class ComposableMarlinConformanceTest extends CudaConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new MarlinBackend(
        MarlinProperties.of(MarlinOptions.DEFAULT.withLora(LoraMode.COMPOSABLE_ONE_STREAM)));
  }
}
