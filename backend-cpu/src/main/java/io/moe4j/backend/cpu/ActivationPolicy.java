package io.moe4j.backend.cpu;

import java.util.Locale;
import java.util.stream.Stream;

/**
 * Whether the kernels in C may quantise activations. Numbers change with it, so nobody gets it
 * unasked.
 */
enum ActivationPolicy {
  /** Activations stay as they are. */
  UNQUANTISED,
  /**
   * What meets int4 or int8 weights becomes int8, each token's row with a scale of its own, {@code
   * amax / 127}, as {@link io.moe4j.api.config.ActivationQuant#INT8_PER_TOKEN} says. Adapters meet
   * the unquantised row.
   */
  INT8;

  /** {@code unquantised} or {@code int8}. */
  static final String PROPERTY = "moe4j.cpu.activations";

  /** {@return what the property says} */
  static ActivationPolicy configured() {
    String text = System.getProperty(PROPERTY, "unquantised");
    return Stream.of(values())
        .filter(p -> p.name().toLowerCase(Locale.ROOT).equals(text))
        .findFirst()
        .orElseThrow(() ->
            new IllegalArgumentException(
                "-D" + PROPERTY + " is \"" + text + "\", accepted: unquantised, int8"));
  }

  /**
   * {@return what to add to a description of kernels; empty without int8}
   *
   * @param available whether the kernels have units for it
   */
  String describe(boolean available) {
    return switch (this) {
      case UNQUANTISED -> "";
      case INT8 ->
          available
              ? ", int8 activations with int4 and int8 weights"
              : ", activations unquantised: -D"
                  + PROPERTY
                  + "=int8 needs kernels in C with AVX-512 VNNI, AMX or (aarch64) I8MM";
    };
  }
}
