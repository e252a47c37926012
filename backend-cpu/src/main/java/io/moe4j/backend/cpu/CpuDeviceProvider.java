package io.moe4j.backend.cpu;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.reference.HostDevice;
import java.util.List;

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
    return new HostDevice(CpuInfo.host());
  }
}
