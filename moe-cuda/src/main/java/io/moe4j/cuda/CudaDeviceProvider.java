package io.moe4j.cuda;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;

/**
 * Opens NVIDIA devices. Looking for them happens once a process; a machine without driver, device
 * or native library answers with the reason.
 *
 * <p>Properties of a {@link DeviceInfo} from here: {@code driver} (the CUDA version the driver is
 * for, {@code 13.0}), {@code ptx-isa} (the newest PTX it compiles), {@code multiprocessors}, {@code
 * l2-bytes}, {@code shared-bytes-per-block}.
 */
public final class CudaDeviceProvider implements DeviceProvider {
  private static final PtxVersion UNKNOWN_DRIVER = new PtxVersion(Integer.MAX_VALUE, 0);

  /** Runs the probe when first asked, under the class loader's lock. */
  private static final class Once {
    static final Probe PROBE = CudaDriverProbe.run();
  }

  /** For {@link java.util.ServiceLoader}; does nothing. */
  public CudaDeviceProvider() {}

  @Override
  public DeviceType type() {
    return DeviceType.CUDA;
  }

  @Override
  public Probe probe() {
    return Once.PROBE;
  }

  @Override
  public CudaDevice open(int ordinal) {
    Probe probe = probe();
    if (probe.devices().isEmpty()) {
      throw new DeviceException("cannot open cuda:" + ordinal + ": " + probe.absent());
    }
    return probe.devices().stream()
        .filter(d -> d.id().ordinal() == ordinal)
        .findFirst()
        .map(CudaDevice::open)
        .orElseThrow(() ->
            new DeviceException(
                "cannot open cuda:"
                    + ordinal
                    + ": this machine has "
                    + probe.devices().stream().map(d -> d.id().toString()).toList()));
  }

  /**
   * {@return the capability of a CUDA device}
   *
   * @param device its description
   * @throws IllegalArgumentException if it has none
   */
  public static ComputeCapability capability(DeviceInfo device) {
    return device
        .capability()
        .orElseThrow(
            () -> new IllegalArgumentException(device.id() + " has no compute capability"));
  }

  /**
   * {@return the newest PTX that the device's driver compiles; a description that does not say is
   * taken for a driver that compiles anything}
   *
   * @param device its description
   */
  public static PtxVersion ptxIsa(DeviceInfo device) {
    String text = device.properties().get("ptx-isa");
    return text == null ? UNKNOWN_DRIVER : PtxVersion.parse(text);
  }
}
