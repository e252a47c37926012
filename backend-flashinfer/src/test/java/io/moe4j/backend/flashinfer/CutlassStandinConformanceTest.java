package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.Device;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.ExpertsConformanceTest;
import java.util.OptionalLong;

/**
 * The conformance kit over the stand-in, on memory of the host: everything but FlashInfer's own
 * kernels.
 */
public final class CutlassStandinConformanceTest extends ExpertsConformanceTest {
  private HostCuda device;

  @Override
  protected ExpertsBackend backend() {
    return Standin.cutlass();
  }

  @Override
  protected Device openDevice() {
    Standin.assumeCompiler();
    device = new HostCuda(9, 0);
    return device;
  }

  @Override
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.of(device.taken());
  }
}
