package io.moe4j.lora.cuda;

import io.moe4j.api.config.SystemSettings;
import java.util.Locale;

/** Ways to compute a delta. All give the same result up to rounding. */
public enum LoraPath {
  /** The wrapper chooses, call by call. */
  AUTO,
  /** Pairs sorted by expert and adapter; one launch shrinks and expands. Ranks up to 128 in all. */
  ONE_SHOT,
  /** The same without sorting, each pair by itself. */
  SMALL_BATCH,
  /** A launch to shrink and one to expand; any rank. */
  TWO_KERNELS,
  /** Any types, strides, widths and ranks, in f32 without matrix instructions. */
  GENERAL;

  /**
   * System property that forces a path where it can serve a call, like {@code one-shot}; a call
   * that it cannot serve takes another, never fails. Read when a wrapper is made.
   */
  public static final String PROPERTY = "moe4j.lora.cuda.path";

  static LoraPath ofProperty() {
    return SystemSettings.oneOf(PROPERTY, AUTO, values(), LoraPath::text);
  }

  /** {@return the name as the property takes it} */
  public String text() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }
}
