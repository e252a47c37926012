package io.moe4j.cli;

import picocli.CommandLine.ITypeConverter;
import picocli.CommandLine.TypeConversionException;

/** What quantised layers do with activations. */
enum Activations {
  /** They stay as they are. */
  UNQUANTISED("unquantised"),
  /** They are quantised where the checkpoint means them to be. */
  AS_QUANTISED("as-quantised");

  private final String word;

  Activations(String word) {
    this.word = word;
  }

  /** Reads the option. */
  static final class Reader implements ITypeConverter<Activations> {
    @Override
    public Activations convert(String value) {
      for (Activations a : values()) {
        if (a.word.equals(value)) {
          return a;
        }
      }
      throw new TypeConversionException(
          "it is '"
              + Text.line(value)
              + "', must be "
              + UNQUANTISED.word
              + " or "
              + AS_QUANTISED.word);
    }
  }
}
