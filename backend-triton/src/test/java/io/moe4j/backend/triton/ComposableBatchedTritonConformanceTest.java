package io.moe4j.backend.triton;

import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.backend.triton.options.TritonOptions;
import io.moe4j.backend.triton.options.TritonProperties;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.tck.GpuTest;

/** The conformance kit on {@code batched-triton} with the deltas of a punica wrapper. */
@GpuTest
public final class ComposableBatchedTritonConformanceTest extends CudaConformanceTest {
  @Override
  protected ExpertsBackend backend() {
    return new BatchedTritonBackend(
        TritonProperties.of(TritonOptions.DEFAULT.withLora(LoraMode.COMPOSABLE_ONE_STREAM)));
  }
}
