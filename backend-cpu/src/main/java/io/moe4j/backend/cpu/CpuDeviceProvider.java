package io.moe4j.backend.cpu;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.tensor.DType;
import io.moe4j.backend.cpu.ffi.NativeKernels;
import io.moe4j.backend.cpu.options.CpuProperties;
import java.util.List;
import java.util.Optional;

/** Opens the host processor, which is always there: one device, ordinal 0. */
public final class CpuDeviceProvider implements DeviceProvider {
  /** For {@link java.util.ServiceLoader}. */
  public CpuDeviceProvider() {}

  @Override
  public DeviceType type() {
    return DeviceType.CPU;
  }

  @Override
  public Probe probe() {
    return new Probe(List.of(CpuInfo.host()), "");
  }

  @Override
  public Device open(int ordinal) {
    if (ordinal != 0) {
      throw new DeviceException("cpu:" + ordinal + " does not exist; the host processor is cpu:0");
    }
    return new CpuDevice(CpuInfo.host());
  }

  /** Bf16 on the kernels' units for it; the Vector API's f32 is left to whoever measures. */
  @Override
  public Optional<PeakLoop> peakLoop(DType type) {
    NativeKernels c =
        type == DType.BF16 ? KernelChoice.of(CpuProperties.read().defaults()).c() : null;
    return c == null || c.peak(1) == 0 ? Optional.empty() : Optional.of(new Bf16Peak(c));
  }

  private record Bf16Peak(NativeKernels c) implements PeakLoop {
    @Override
    public String units() {
      return c.isa().title();
    }

    @Override
    public double run(long rounds) {
      return c.peak(rounds);
    }
  }
}
