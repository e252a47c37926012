package io.moe4j.integration;

import io.moe4j.api.device.DeviceProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.tck.BlockOpsConformanceTest;

class CpuDeviceConformanceTest extends BlockOpsConformanceTest {
  @Override
  protected DeviceProvider provider() {
    return new CpuDeviceProvider();
  }
}
