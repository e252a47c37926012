package io.moe4j.checkpoint;

import io.moe4j.api.CheckpointException;
import io.moe4j.api.config.Activation;
import io.moe4j.api.config.Activation.Kind;

/** The {@code hidden_act} names of config.json. */
final class ActivationNames {
  private static final String GATED =
      "one of silu, swish, gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh";
  private static final String UNGATED = GATED + ", relu2";

  private ActivationNames() {}

  /**
   * The activation of an MLP with gate.
   *
   * @param config where to read
   * @param key like {@code hidden_act}
   * @return the activation; SiLU if the key is absent, as in every family that has it
   */
  static Activation gated(ModelConfig config, String key) {
    String name = config.optionalString(key).orElse("silu");
    return switch (name) {
      case "silu", "swish" -> Activation.SILU;
      case "gelu", "gelu_python" -> Activation.GELU;
      // Three spellings of the tanh form that differ only in how they were coded.
      case "gelu_pytorch_tanh", "gelu_new", "gelu_fast" -> Activation.GELU_TANH;
      default -> throw unknown(config, key, GATED);
    };
  }

  /**
   * The activation of an MLP without gate.
   *
   * @param config where to read
   * @param key like {@code mlp_hidden_act}
   * @param defaultName if the key is absent
   * @return the activation
   */
  static Activation ungated(ModelConfig config, String key, String defaultName) {
    String name = config.optionalString(key).orElse(defaultName);
    return switch (name) {
      case "relu2" -> Activation.RELU2_NO_MUL;
      case "silu", "swish" -> Activation.plain(Kind.SILU_NO_MUL);
      case "gelu", "gelu_python" -> Activation.plain(Kind.GELU_NO_MUL);
      case "gelu_pytorch_tanh", "gelu_new", "gelu_fast" -> Activation.plain(Kind.GELU_TANH_NO_MUL);
      default -> throw unknown(config, key, UNGATED);
    };
  }

  private static CheckpointException unknown(ModelConfig config, String key, String accepted) {
    return config.unusable(key, accepted);
  }
}
