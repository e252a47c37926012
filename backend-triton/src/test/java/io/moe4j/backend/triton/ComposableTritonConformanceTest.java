package io.moe4j.backend.triton;

import io.moe4j.api.spi.Device;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.tck.ExpertsConformanceTest;
import io.moe4j.tck.GpuTest;
import java.util.OptionalLong;

/** The conformance kit on {@code triton} with the deltas of a punica wrapper. */
@GpuTest
public final class ComposableTritonConformanceTest extends ExpertsConformanceTest {
  private CudaDevice device;

  @Override
  protected Device openDevice() {
    device = new CudaDeviceProvider().open(0);
    return device;
  }

  @Override
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.of(device.allocatedBytes());
  }

  @Override
  protected ExpertsBackend backend() {
    return new TritonBackend(LoraMode.COMPOSABLE_ONE_STREAM);
  }
}
