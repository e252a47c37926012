package io.moe4j.lora.cuda;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.SystemSettings;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.PunicaProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.cuda.CudaDevice;

/** Makes {@link CudaPunicaWrapper}s; found by the service loader. */
public final class CudaPunicaProvider implements PunicaProvider {
  /** For the service loader. */
  public CudaPunicaProvider() {}

  @Override
  public DeviceType deviceType() {
    return DeviceType.CUDA;
  }

  /** Refuses layers while {@link LoraPath#PROPERTY} is mistyped. */
  @Override
  public Support isSupportedConfig(MoeConfig config) {
    String fault = SystemSettings.fault(LoraPath::ofProperty);
    return Support.checks()
        .require(fault == null, Support.Code.LORA, () -> String.valueOf(fault))
        .result();
  }

  @Override
  public PunicaWrapper open(Device device) {
    return new CudaPunicaWrapper(CudaDevice.of(device));
  }
}
