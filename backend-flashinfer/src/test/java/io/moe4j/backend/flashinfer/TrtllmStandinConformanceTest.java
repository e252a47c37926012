package io.moe4j.backend.flashinfer;

import io.moe4j.api.device.Device;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.tck.ExpertsConformanceTest;
import java.util.Map;
import java.util.OptionalLong;

/**
 * The conformance kit over the stand-in of the TRTLLM experts, on memory of the host: routing,
 * LoRA, everything but FlashInfer's own kernels and ours.
 */
public final class TrtllmStandinConformanceTest extends ExpertsConformanceTest {
  private HostCuda device;

  @Override
  protected ExpertsBackend backend() {
    return Standin.trtllmBackend();
  }

  @Override
  protected Device openDevice() {
    Standin.assumeCompiler();
    device = new HostCuda(10, 0);
    return device;
  }

  @Override
  protected Map<String, String> declined() {
    return Map.of("MOE-5.2", "the stand-in for the card routes with the reference, on the host");
  }

  @Override
  protected OptionalLong deviceBytesInUse() {
    return OptionalLong.of(device.taken());
  }
}
