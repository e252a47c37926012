package com.example.acme;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.DeviceType;
import java.util.List;

/** Opens the card. A machine without it would get an empty probe with the reason. */
public final class AcmeDeviceProvider implements DeviceProvider {
  @Override
  public DeviceType type() {
    return AcmeDevice.TYPE;
  }

  @Override
  public Probe probe() {
    return new Probe(List.of(AcmeDevice.INFO), "");
  }

  @Override
  public Device open(int ordinal) {
    if (ordinal != 0) {
      throw new DeviceException("acme:" + ordinal + " does not exist; there is acme:0");
    }
    return new AcmeDevice();
  }
}
