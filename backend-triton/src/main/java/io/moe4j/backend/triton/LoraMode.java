package io.moe4j.backend.triton;

import io.moe4j.api.MoeException;
import java.util.Arrays;
import java.util.Locale;

/** Who adds the deltas of adapters. Both give the same result up to rounding. */
enum LoraMode {
  /** The GEMMs themselves, see {@link GemmLaunches}. */
  FUSED,
  /**
   * The context's punica wrapper, see {@link ComposedLora}: for few pairs on a second stream beside
   * each GEMM, for many after it.
   */
  COMPOSABLE,
  /** The same, always after the GEMM. */
  COMPOSABLE_ONE_STREAM,
  /** The same, always beside it. */
  COMPOSABLE_TWO_STREAMS;

  /**
   * Up to this many pairs a GEMM leaves much of the card waiting; with more, zeros and deltas that
   * are written and read once more cost what the second stream gains.
   */
  private static final int FEW_PAIRS = 256;

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
    throw new MoeException(
        PROPERTY
            + " is \""
            + value
            + "\", must be one of "
            + Arrays.stream(values()).map(LoraMode::text).toList());
  }

  /** {@return whether deltas of a forward with that many pairs are computed beside the GEMMs} */
  boolean beside(int pairs) {
    return this == COMPOSABLE_TWO_STREAMS || (this == COMPOSABLE && pairs <= FEW_PAIRS);
  }

  /** {@return most pairs of a forward with up to {@code pairs} whose deltas are} */
  int mostBeside(int pairs) {
    return this == COMPOSABLE ? Math.min(pairs, FEW_PAIRS) : beside(pairs) ? pairs : 0;
  }

  /** {@return the name as the property takes it} */
  String text() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }
}
