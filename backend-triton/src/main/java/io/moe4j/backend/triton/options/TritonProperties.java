package io.moe4j.backend.triton.options;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.cuda.ops.LoraMode;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Every system property of this module. {@value #LORA} and {@value #UNPACK} are the defaults of
 * {@link TritonOptions#lora} and {@link TritonOptions#unpackWeights}, read once when a backend is
 * found; a mistyped value is a reason why layers without options of their own are not supported.
 * {@value #TILES} is where tuned tiles are kept, read when a layer is built.
 *
 * @since 0.2.0
 */
public final class TritonProperties {
  /** Default of {@link TritonOptions#lora}, like {@code composable}. */
  public static final String LORA = "moe4j.triton.lora";

  /** Default of {@link TritonOptions#unpackWeights}, {@code true} or {@code false}. */
  public static final String UNPACK = "moe4j.triton.unpack";

  /** A file, or {@code off}. */
  public static final String TILES = "moe4j.triton.tiles";

  private final TritonOptions defaults;
  private final @Nullable String fault;

  private TritonProperties(TritonOptions defaults, @Nullable String fault) {
    this.defaults = defaults;
    this.fault = fault;
  }

  /** {@return what is set now} */
  public static TritonProperties read() {
    String unpack = System.getProperty(UNPACK, "false");
    if (!unpack.equals("true") && !unpack.equals("false")) {
      return new TritonProperties(
          TritonOptions.DEFAULT, UNPACK + " is \"" + unpack + "\", must be true or false");
    }
    TritonOptions options = TritonOptions.DEFAULT.withUnpackedWeights(Boolean.parseBoolean(unpack));
    String lora = System.getProperty(LORA);
    if (lora == null) {
      return of(options);
    }
    try {
      return of(options.withLora(LoraMode.of(lora)));
    } catch (IllegalArgumentException e) {
      return new TritonProperties(
          TritonOptions.DEFAULT, String.valueOf(e.getMessage()).replace("LoRA mode", LORA));
    }
  }

  /**
   * {@return properties that say the same as options}
   *
   * @param defaults for layers without options of their own
   */
  public static TritonProperties of(TritonOptions defaults) {
    return new TritonProperties(Objects.requireNonNull(defaults, "defaults"), null);
  }

  /** {@return what {@value #TILES} is set to now} */
  public static @Nullable String tiles() {
    return System.getProperty(TILES);
  }

  /**
   * {@return why a layer's options are not known: it has none and a property is mistyped; null
   * where they are}
   *
   * @param config of the layer
   */
  public @Nullable String fault(MoeConfig config) {
    return config.options(TritonOptions.class).isPresent() ? null : fault;
  }

  /**
   * {@return a layer's options, or the defaults}
   *
   * @param config of the layer
   * @throws MoeException if it has none and a property is mistyped
   */
  public TritonOptions options(MoeConfig config) {
    if (fault(config) != null) {
      throw new MoeException(String.valueOf(fault));
    }
    return config.options(TritonOptions.class).orElse(defaults);
  }
}
