package io.moe4j.tck;

import io.moe4j.api.device.DeviceProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;

class CpuBlockOpsConformanceTest extends BlockOpsConformanceTest {
  @Override
  protected DeviceProvider provider() {
    return new CpuDeviceProvider();
  }
}
