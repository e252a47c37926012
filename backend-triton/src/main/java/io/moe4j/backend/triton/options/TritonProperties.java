package io.moe4j.backend.triton.options;

import io.moe4j.api.config.OptionDefaults;
import io.moe4j.api.config.SystemSettings;
import io.moe4j.cuda.ops.LoraMode;
import java.util.function.Supplier;

/**
 * Every system property of this module. {@value #LORA} and {@value #UNPACK} are the defaults of
 * {@link TritonOptions#lora} and {@link TritonOptions#unpackWeights}, read once when a backend is
 * found; a mistyped value is a reason why layers without options of their own are not supported.
 * {@value #TILES} is where tuned tiles are kept, read when a layer is built.
 *
 * @since 0.2.0
 */
public final class TritonProperties extends OptionDefaults<TritonOptions> {
  /** Default of {@link TritonOptions#lora}, like {@code composable}. */
  public static final String LORA = "moe4j.triton.lora";

  /** Default of {@link TritonOptions#unpackWeights}, {@code true} or {@code false}. */
  public static final String UNPACK = "moe4j.triton.unpack";

  /** A file, or {@code off}. */
  public static final String TILES = "moe4j.triton.tiles";

  private TritonProperties(Supplier<TritonOptions> read) {
    super(TritonOptions.class, TritonOptions.DEFAULT, read);
  }

  /** {@return what is set now} */
  public static TritonProperties read() {
    return new TritonProperties(() ->
        TritonOptions.DEFAULT
            .withUnpackedWeights(SystemSettings.isTrue(UNPACK, false))
            .withLora(LoraMode.ofProperty(LORA)));
  }

  /**
   * {@return properties that say the same as options}
   *
   * @param defaults for layers without options of their own
   */
  public static TritonProperties of(TritonOptions defaults) {
    return new TritonProperties(() -> defaults);
  }
}
