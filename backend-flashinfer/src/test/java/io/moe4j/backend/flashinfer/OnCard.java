package io.moe4j.backend.flashinfer;

import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import java.lang.foreign.Arena;

/** The first card of the machine, where FlashInfer is installed for it. */
final class OnCard {
  private OnCard() {}

  /** {@return the card; the test is skipped, with the reason, where FlashInfer is not there} */
  static CudaDevice open() {
    CudaDevice device = new CudaDeviceProvider().open(0);
    try {
      FlashInferModule _ = module(device.info());
      return device;
    } catch (RuntimeException | Error e) {
      device.close();
      throw e;
    }
  }

  /** {@return the CUTLASS experts' module; the test is skipped where it is not there} */
  static FlashInferModule module(DeviceInfo device) {
    var answer = Installed.HERE.cutlass(FlashInferOptions.DEFAULT, device);
    assumeTrue(answer.isPresent(), "FlashInfer has no CUTLASS experts for " + device.name());
    assumeTrue(answer.get().module().isPresent(), answer.get().reason());
    return answer.get().module().orElseThrow();
  }

  /** {@return a copy on the host} */
  static Tensor fetch(CudaDevice device, Tensor from) {
    Tensor to =
        Tensor.of(
            from.dtype(),
            Arena.ofAuto().allocate(Math.max(1, from.dtype().byteSize(from.elementCount())), 64),
            from.shape());
    device.copy(from, to, device.defaultStream());
    device.defaultStream().synchronize();
    return to;
  }

  /** {@return a copy on the card} */
  static Tensor put(DeviceTensors to, Tensor host) {
    Tensor there = to.allocate(host.dtype(), host.shape());
    to.copy(host, there);
    return there;
  }
}
