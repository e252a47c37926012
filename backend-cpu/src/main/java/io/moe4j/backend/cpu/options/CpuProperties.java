package io.moe4j.backend.cpu.options;

import static io.moe4j.api.config.SystemSettings.isTrue;
import static io.moe4j.api.config.SystemSettings.number;
import static io.moe4j.api.config.SystemSettings.oneOf;

import io.moe4j.api.config.OptionDefaults;

/**
 * Every system property of this module: the defaults of {@link CpuOptions}, read once when a
 * backend is found. A mistyped value is a reason why layers without options of their own are not
 * supported.
 *
 * @since 0.2.0
 */
public final class CpuProperties extends OptionDefaults<CpuOptions> {
  /**
   * Default of {@link CpuOptions#kernels}: {@code auto}, {@code off} for those in Java, or the name
   * of an instruction set: {@code avx2}, {@code avx512}, {@code avx512bf16}, {@code amx}; {@code
   * neon}, {@code neonbf16} on aarch64.
   */
  public static final String NATIVE = "moe4j.cpu.native";

  /** {@code true} makes {@link CpuKernels#SCALAR} the default, whatever {@link #NATIVE} says. */
  public static final String SCALAR = "moe4j.cpu.scalar";

  /** Default of {@link CpuOptions#pack}. */
  public static final String PACK = "moe4j.cpu.pack";

  /** Default of {@link CpuOptions#activations}. */
  public static final String ACTIVATIONS = "moe4j.cpu.activations";

  /** Default of {@link CpuOptions#threads}. */
  public static final String THREADS = "moe4j.cpu.threads";

  /** Default of {@link CpuOptions#pinned}, {@code true} or {@code false}. */
  public static final String PIN = "moe4j.cpu.pin";

  private CpuProperties() {
    super(CpuOptions.class, CpuOptions.DEFAULT, CpuProperties::now);
  }

  /** {@return what is set now} */
  public static CpuProperties read() {
    return new CpuProperties();
  }

  private static CpuOptions now() {
    CpuKernels kernels =
        oneOf(NATIVE, CpuKernels.AUTO, CpuKernels.natives(), CpuKernels::nativeText);
    return CpuOptions.DEFAULT
        .withKernels(isTrue(SCALAR, false) ? CpuKernels.SCALAR : kernels)
        .withPack(oneOf(PACK, PackPolicy.AUTO, PackPolicy.values(), PackPolicy::text))
        .withActivations(
            oneOf(
                ACTIVATIONS,
                ActivationPolicy.UNQUANTISED,
                ActivationPolicy.values(),
                ActivationPolicy::text))
        .withThreads(number(THREADS, 0, 1, CpuOptions.MAX_THREADS))
        .withPinned(isTrue(PIN, false));
  }
}
