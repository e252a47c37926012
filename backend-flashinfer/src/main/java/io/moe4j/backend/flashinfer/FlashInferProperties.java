package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.OptionDefaults;
import io.moe4j.api.config.SystemSettings;
import java.util.function.Supplier;

/**
 * Every system property of this module. {@value #FUSED_FINALIZE} and {@value #REPLAYS} are the
 * defaults of {@link FlashInferOptions}, read once when a backend is found; a mistyped value is a
 * reason why layers without options of their own are not supported. The others say where things
 * are, and are read when FlashInfer is looked for or a layer is built.
 *
 * @since 0.2.0
 */
public final class FlashInferProperties extends OptionDefaults<FlashInferOptions> {
  /** Default of {@link FlashInferOptions#fusedFinalize}, {@code true} or {@code false}. */
  public static final String FUSED_FINALIZE = "moe4j.flashinfer.fused-finalize";

  /** Default of {@link FlashInferOptions#replays}. */
  public static final String REPLAYS = "moe4j.flashinfer.replays";

  /** A module, a folder of modules, or a folder of Python packages. */
  public static final String PATH = "moe4j.flashinfer.path";

  /** The version of what {@link #PATH} names. */
  public static final String VERSION = "moe4j.flashinfer.version";

  /** The file {@code libtvm_ffi.so}. */
  public static final String TVM_FFI = "moe4j.flashinfer.tvm-ffi";

  /** A file of tuned tactics, or {@code off}. */
  public static final String TACTICS = "moe4j.flashinfer.tactics";

  private FlashInferProperties(Supplier<FlashInferOptions> read) {
    super(FlashInferOptions.class, FlashInferOptions.DEFAULT, read);
  }

  /** {@return what is set now} */
  public static FlashInferProperties read() {
    return new FlashInferProperties(() ->
        FlashInferOptions.DEFAULT
            .withFusedFinalize(SystemSettings.isTrue(FUSED_FINALIZE, false))
            .withReplays(
                SystemSettings.number(REPLAYS, FlashInferOptions.REPLAYS, 0, Integer.MAX_VALUE)));
  }
}
