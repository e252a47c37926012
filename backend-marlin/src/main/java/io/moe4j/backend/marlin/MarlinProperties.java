package io.moe4j.backend.marlin;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.cuda.ops.LoraMode;
import org.jspecify.annotations.Nullable;

/**
 * Every system property of this module. {@value #LORA} is the default of {@link
 * MarlinOptions#lora}, read once when a backend is found; a mistyped value is a reason why layers
 * without options of their own are not supported. {@value #PLANS} is where tuned plans are kept,
 * read when a layer is built.
 *
 * @since 0.2.0
 */
public final class MarlinProperties {
  /** Default of {@link MarlinOptions#lora}, like {@code composable}. */
  public static final String LORA = "moe4j.marlin.lora";

  /** A file, or {@code off}. */
  public static final String PLANS = "moe4j.marlin.plans";

  private final MarlinOptions defaults;
  private final @Nullable String fault;

  private MarlinProperties(MarlinOptions defaults, @Nullable String fault) {
    this.defaults = defaults;
    this.fault = fault;
  }

  /** {@return what is set now} */
  public static MarlinProperties read() {
    String lora = System.getProperty(LORA);
    try {
      return of(
          lora == null ? MarlinOptions.DEFAULT : MarlinOptions.DEFAULT.withLora(LoraMode.of(lora)));
    } catch (IllegalArgumentException e) {
      return new MarlinProperties(
          MarlinOptions.DEFAULT, String.valueOf(e.getMessage()).replace("LoRA mode", LORA));
    }
  }

  /**
   * {@return properties that say the same as options}
   *
   * @param defaults for layers without options of their own
   */
  public static MarlinProperties of(MarlinOptions defaults) {
    return new MarlinProperties(defaults, null);
  }

  /**
   * {@return why a layer's options are not known: it has none and a property is mistyped; null
   * where they are}
   *
   * @param config of the layer
   */
  public @Nullable String fault(MoeConfig config) {
    return config.options(MarlinOptions.class).isPresent() ? null : fault;
  }

  /**
   * {@return a layer's options, or the defaults}
   *
   * @param config of the layer
   * @throws MoeException if it has none and a property is mistyped
   */
  public MarlinOptions options(MoeConfig config) {
    String why = fault(config);
    if (why != null) {
      throw new MoeException(why);
    }
    return config.options(MarlinOptions.class).orElse(defaults);
  }
}
