package io.moe4j.backend.cpu.options;

import java.util.Locale;

/**
 * Whether the kernels in C may quantise activations. Numbers change with it, so nobody gets it
 * unasked.
 *
 * @since 0.2.0
 */
public enum ActivationPolicy {
  /** Activations stay as they are. */
  UNQUANTISED,
  /**
   * What meets int4 or int8 weights becomes int8, each token's row with a scale of its own, {@code
   * amax / 127}, as {@link io.moe4j.api.config.ActivationQuant#INT8_PER_TOKEN} says. Adapters meet
   * the unquantised row. Takes AVX-512 VNNI, AMX or, on aarch64, I8MM; elsewhere activations stay
   * as they are, and {@code explain()} says so.
   */
  INT8;

  /** {@return its name in lower case, as properties have it and tools print it} */
  public String text() {
    return name().toLowerCase(Locale.ROOT);
  }
}
