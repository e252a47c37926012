package io.moe4j.backend.cpu.options;

import io.moe4j.api.MoeException;
import io.moe4j.api.config.MoeConfig;
import java.util.Arrays;
import java.util.Locale;
import java.util.function.Function;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;

/**
 * Every system property of this module: the defaults of {@link CpuOptions}, read once when a
 * backend is found. A mistyped value is a reason why layers without options of their own are not
 * supported.
 *
 * @since 0.2.0
 */
public final class CpuProperties {
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

  private final CpuOptions defaults;
  private final @Nullable String fault;

  private CpuProperties(CpuOptions defaults, @Nullable String fault) {
    this.defaults = defaults;
    this.fault = fault;
  }

  /** {@return what is set now} */
  public static CpuProperties read() {
    try {
      CpuKernels kernels = kernels();
      return new CpuProperties(
          CpuOptions.DEFAULT
              .withKernels(isTrue(SCALAR) ? CpuKernels.SCALAR : kernels)
              .withPack(oneOf(PACK, "auto", PackPolicy.values(), PackPolicy::text))
              .withActivations(
                  oneOf(
                      ACTIVATIONS,
                      "unquantised",
                      ActivationPolicy.values(),
                      ActivationPolicy::text))
              .withThreads(threads(System.getProperty(THREADS)))
              .withPinned(isTrue(PIN)),
          null);
    } catch (IllegalArgumentException e) {
      return new CpuProperties(CpuOptions.DEFAULT, String.valueOf(e.getMessage()));
    }
  }

  private static CpuKernels kernels() {
    String text = System.getProperty(NATIVE, "auto");
    return CpuKernels.ofNative(text)
        .orElseThrow(() ->
            wrong(
                NATIVE,
                text,
                "accepted: auto, off, "
                    + Arrays.stream(CpuKernels.values())
                        .filter(CpuKernels::isInstructionSet)
                        .map(CpuKernels::text)
                        .collect(Collectors.joining(", "))));
  }

  private static <E> E oneOf(String property, String usual, E[] all, Function<E, String> text) {
    String given = System.getProperty(property, usual);
    return Arrays.stream(all)
        .filter(e -> text.apply(e).equals(given))
        .findFirst()
        .orElseThrow(() ->
            wrong(
                property,
                given,
                "accepted: " + Arrays.stream(all).map(text).collect(Collectors.joining(", "))));
  }

  /** A property that is set without a value is true, as everywhere. */
  private static boolean isTrue(String property) {
    String text = System.getProperty(property, "false");
    return switch (text.strip().toLowerCase(Locale.ROOT)) {
      case "", "true" -> true;
      case "false" -> false;
      default -> throw wrong(property, text, "accepted: true, false");
    };
  }

  /** {@return a number of threads; 0 where none is given} */
  static int threads(@Nullable String text) {
    if (text == null) {
      return 0;
    }
    int n;
    try {
      n = Integer.parseInt(text.strip());
    } catch (NumberFormatException e) {
      n = 0;
    }
    if (n < 1 || n > CpuOptions.MAX_THREADS) {
      throw wrong(THREADS, text, "must be 1.." + CpuOptions.MAX_THREADS);
    }
    return n;
  }

  private static IllegalArgumentException wrong(String property, String text, String accepted) {
    return new IllegalArgumentException("-D" + property + " is \"" + text + "\", " + accepted);
  }

  /** {@return the options of layers that have none of their own} */
  public CpuOptions defaults() {
    return defaults;
  }

  /** {@return what is mistyped; null where nothing is} */
  public @Nullable String fault() {
    return fault;
  }

  /**
   * {@return why a layer's options are not known: it has none and a property is mistyped; null
   * where they are}
   *
   * @param config of the layer
   */
  public @Nullable String fault(MoeConfig config) {
    return config.options(CpuOptions.class).isPresent() ? null : fault;
  }

  /**
   * {@return a layer's options, or the defaults}
   *
   * @param config of the layer
   * @throws MoeException if it has none and a property is mistyped
   */
  public CpuOptions options(MoeConfig config) {
    if (fault(config) != null) {
      throw new MoeException(String.valueOf(fault));
    }
    return config.options(CpuOptions.class).orElse(defaults);
  }
}
