package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.SystemSettings;

/**
 * Whether FlashInfer's CUTLASS experts may make the weighted sum inside the second product. They do
 * it with atomic additions, so equal calls give unequal bits; large batches take less time, because
 * the rows of all pairs are neither written nor read again. Off unless asked for. Versions before
 * 0.6.15 are not asked and do as they like.
 */
final class FusedSum {
  /** {@code true} = allowed. */
  static final String PROPERTY = "moe4j.flashinfer.fused-finalize";

  private FusedSum() {}

  /**
   * {@return whether it is allowed in this process}
   *
   * @throws io.moe4j.api.SettingException if the property is mistyped
   */
  static boolean on() {
    return SystemSettings.isTrue(PROPERTY, false);
  }
}
