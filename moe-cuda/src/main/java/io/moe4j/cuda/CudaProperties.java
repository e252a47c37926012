package io.moe4j.cuda;

import io.moe4j.api.SettingException;
import io.moe4j.api.config.SystemSettings;

/** Every system property of this module that is a setting. */
final class CudaProperties {
  /** Set to {@code false} to launch without programmatic dependent launch. */
  static final String PDL = "moe4j.cuda.pdl";

  private CudaProperties() {}

  /**
   * Whether kernels may start before the one in front of them has finished; read when a kernel is
   * loaded.
   *
   * @throws SettingException if it is mistyped
   */
  static boolean pdlAllowed() {
    return SystemSettings.isTrue(PDL, true);
  }
}
