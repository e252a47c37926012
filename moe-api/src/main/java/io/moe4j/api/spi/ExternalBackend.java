package io.moe4j.api.spi;

import io.moe4j.api.platform.Platform;
import java.util.List;

/**
 * A backend whose kernels come with software that users install themselves. Where it is missing the
 * backend answers {@link #isSupportedConfig} with the reason; this tells more, for {@code moe
 * doctor}.
 *
 * @since 0.2.0
 */
public interface ExternalBackend extends ExpertsBackend {
  /**
   * What was found of the software. Never throws and never touches a device; may load libraries.
   *
   * @param platform the machine
   * @return one entry for each thing that was looked for, in the order it was looked for
   */
  List<ExternalStatus> externalStatus(Platform platform);
}
