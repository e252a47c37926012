package io.moe4j.api.platform;

import java.util.Locale;
import java.util.regex.Pattern;

/**
 * A family of devices. Open on purpose: an out-of-tree backend names its own.
 *
 * @param name lower-case id, letters, digits and dashes, like {@code cuda}
 * @since 0.1.0
 */
public record DeviceType(String name) {
  private static final Pattern NAME = Pattern.compile("[a-z][a-z0-9-]*");

  /** The host processor. */
  public static final DeviceType CPU = new DeviceType("cpu");

  /** NVIDIA GPUs. */
  public static final DeviceType CUDA = new DeviceType("cuda");

  /** AMD GPUs. */
  public static final DeviceType ROCM = new DeviceType("rocm");

  /** Intel GPUs. */
  public static final DeviceType XPU = new DeviceType("xpu");

  /** Google TPUs. */
  public static final DeviceType TPU = new DeviceType("tpu");

  /**
   * Checks the components.
   *
   * @param name lower-case id
   */
  public DeviceType {
    if (!NAME.matcher(name).matches()) {
      throw new IllegalArgumentException(
          "device type name is \""
              + name
              + "\", must match "
              + NAME.pattern().toLowerCase(Locale.ROOT));
    }
  }

  @Override
  public String toString() {
    return name;
  }
}
