package io.moe4j.cuda.ops;

import io.moe4j.api.config.SystemSettings;
import java.util.Arrays;
import java.util.Locale;

/**
 * Who adds the deltas of adapters in a layer of a backend that can do it itself. All give the same
 * result up to rounding. New modes may come.
 *
 * @since 0.2.0
 */
public enum LoraMode {
  /** The products themselves. */
  FUSED,
  /**
   * The context's punica wrapper: for few pairs on a second stream beside each product, for many
   * after it.
   */
  COMPOSABLE,
  /** The same, always after the product. */
  COMPOSABLE_ONE_STREAM,
  /** The same, always beside it. */
  COMPOSABLE_TWO_STREAMS;

  /**
   * {@return the mode of a name like {@code composable-one-stream}}
   *
   * @param text as {@link #text} gives it
   * @throws IllegalArgumentException if it is none; names what is accepted
   */
  public static LoraMode of(String text) {
    for (LoraMode m : values()) {
      if (m.text().equals(text)) {
        return m;
      }
    }
    throw new IllegalArgumentException(
        "LoRA mode is \""
            + text
            + "\", must be one of "
            + Arrays.stream(values()).map(LoraMode::text).toList());
  }

  /**
   * {@return the mode that a system property names}
   *
   * @param property its name
   * @throws io.moe4j.api.SettingException if it names none
   */
  public static LoraMode ofProperty(String property) {
    return SystemSettings.oneOf(property, FUSED, values(), LoraMode::text);
  }

  /** {@return the name, in lower case with dashes} */
  public String text() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }
}
