package io.moe4j.cuda;

import io.moe4j.api.SettingException;
import io.moe4j.api.config.SystemSettings;
import org.jspecify.annotations.Nullable;

/**
 * Every system property of this module that is a setting. A mistyped one is a reason why layers
 * cannot run on CUDA devices, see {@link io.moe4j.cuda.ops.CudaBlockOpsProvider}.
 *
 * @since 0.2.0
 */
public final class CudaProperties {
  /** Set to {@code false} to launch without programmatic dependent launch. */
  public static final String PDL = "moe4j.cuda.pdl";

  private CudaProperties() {}

  /** {@return what is mistyped; null where nothing is} */
  public static @Nullable String fault() {
    return SystemSettings.fault(CudaProperties::pdlAllowed);
  }

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
