package io.moe4j.backend.marlin;

import io.moe4j.api.device.Device;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.tck.ExpertsConformanceTest;
import java.util.OptionalLong;

/** The conformance kit on the first card; subclasses say which backend. */
public abstract class CudaConformanceTest extends ExpertsConformanceTest {
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
}
