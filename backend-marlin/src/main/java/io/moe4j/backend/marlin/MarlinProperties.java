package io.moe4j.backend.marlin;

import io.moe4j.api.config.OptionDefaults;
import io.moe4j.cuda.ops.LoraMode;
import java.util.function.Supplier;

/**
 * Every system property of this module. {@value #LORA} is the default of {@link
 * MarlinOptions#lora}, read once when a backend is found; a mistyped value is a reason why layers
 * without options of their own are not supported. {@value #PLANS} is where tuned plans are kept,
 * read when a layer is built.
 *
 * @since 0.2.0
 */
public final class MarlinProperties extends OptionDefaults<MarlinOptions> {
  /** Default of {@link MarlinOptions#lora}, like {@code composable}. */
  public static final String LORA = "moe4j.marlin.lora";

  /** A file, or {@code off}. */
  public static final String PLANS = "moe4j.marlin.plans";

  private MarlinProperties(Supplier<MarlinOptions> read) {
    super(MarlinOptions.class, MarlinOptions.DEFAULT, read);
  }

  /** {@return what is set now} */
  public static MarlinProperties read() {
    return new MarlinProperties(() -> MarlinOptions.DEFAULT.withLora(LoraMode.ofProperty(LORA)));
  }

  /**
   * {@return properties that say the same as options}
   *
   * @param defaults for layers without options of their own
   */
  public static MarlinProperties of(MarlinOptions defaults) {
    return new MarlinProperties(() -> defaults);
  }
}
