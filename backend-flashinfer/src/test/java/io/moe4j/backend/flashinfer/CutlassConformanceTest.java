package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.Device;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.tck.ExpertsConformanceTest;
import io.moe4j.tck.GpuTest;
import java.util.OptionalLong;

/** The conformance kit on the first card, with the FlashInfer that is installed. */
@GpuTest
public final class CutlassConformanceTest extends ExpertsConformanceTest {
  private CudaDevice device;

  @Override
  protected ExpertsBackend backend() {
    return new FlashInferCutlassBackend();
  }

  @Override
  protected Device openDevice() {
    device = OnCard.open();
    return device;
  }

  @Override
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.of(device.allocatedBytes());
  }
}
