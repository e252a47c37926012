package io.moe4j.checkpoint;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.Activation.Kind;
import java.util.Optional;

/** The {@code hidden_act} names of config.json. */
final class ActivationNames {
  private static final String GATED =
      "one of silu, swish, gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh";
  private static final String UNGATED = GATED + ", relu2";

  private ActivationNames() {}

  /** The names that are understood. */
  static String accepted(boolean gated) {
    return gated ? GATED : UNGATED;
  }

  /**
   * An activation by its name.
   *
   * @param name a {@code hidden_act}
   * @param gated whether the MLP has a gate
   * @return the activation, or empty if the name is not understood
   */
  static Optional<Activation> named(String name, boolean gated) {
    return switch (name) {
      case "silu", "swish" -> kind(gated ? Kind.SILU : Kind.SILU_NO_MUL);
      case "gelu", "gelu_python" -> kind(gated ? Kind.GELU : Kind.GELU_NO_MUL);
      // Three spellings of the tanh form that differ only in how they were coded.
      case "gelu_pytorch_tanh", "gelu_new", "gelu_fast" ->
          kind(gated ? Kind.GELU_TANH : Kind.GELU_TANH_NO_MUL);
      case "relu2" -> gated ? Optional.empty() : kind(Kind.RELU2_NO_MUL);
      default -> Optional.empty();
    };
  }

  private static Optional<Activation> kind(Kind kind) {
    return Optional.of(Activation.plain(kind));
  }
}
