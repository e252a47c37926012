package io.moe4j.backend.triton;

import java.util.Arrays;
import java.util.Locale;

/** Who adds the deltas of adapters. Both give the same result up to rounding. */
enum LoraMode {
  /** The GEMMs themselves, see {@link GemmLaunches}. */
  FUSED,
  /** The context's punica wrapper, between the GEMMs, see {@link ComposedLora}. */
  COMPOSABLE,
  /** The same on a second stream beside each GEMM. */
  COMPOSABLE_TWO_STREAMS;

  /**
   * System property, like {@code composable}; read whenever a backend is asked or prepares experts.
   */
  static final String PROPERTY = "moe4j.triton.lora";

  static LoraMode ofProperty() {
    String value = System.getProperty(PROPERTY, FUSED.text());
    for (LoraMode m : values()) {
      if (m.text().equals(value)) {
        return m;
      }
    }
    throw new IllegalArgumentException(
        PROPERTY
            + " is \""
            + value
            + "\", must be one of "
            + Arrays.stream(values()).map(LoraMode::text).toList());
  }

  /** {@return the name as the property takes it} */
  String text() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }
}
