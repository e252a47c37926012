package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;

/**
 * What the {@code fused_moe_trtllm_sm100} module computes that this backend passes on to it: the
 * one table of {@code flashinfer-trtllm}. A test holds the README's table to it.
 */
@SuppressWarnings("ImmutableEnumChecker") // a QuantScheme is a value
enum TrtllmScheme {
  /** Plain bf16 weights. */
  PLAIN("none", QuantScheme.NONE, "trtllm_bf16_moe", false, true, DType.U8),

  /** FP4 weights with E8M0 scales for 32, bf16 activations. */
  MXFP4("mxfp4", QuantScheme.MXFP4, "trtllm_fp4_block_scale_moe", true, true, DType.F8_E4M3),

  /** The same, e4m3 activations with E8M0 scales for 32. */
  MXFP4_MXFP8(
      "mxfp4, activations mxfp8",
      QuantScheme.MXFP4.toBuilder().activations(Mx.FP8).build(),
      "trtllm_fp4_block_scale_moe",
      true,
      false,
      DType.F8_E4M3),

  /** FP8 weights with E8M0 scales for 32, activations likewise. */
  MXFP8(
      "mxfp8, activations mxfp8",
      QuantScheme.MXFP8.toBuilder().activations(Mx.FP8).build(),
      "trtllm_fp8_block_scale_moe",
      false,
      false,
      DType.U8);

  private static final class Mx {
    private static final ActivationQuant FP8 =
        new ActivationQuant(
            QuantScheme.Format.FP8, ActivationQuant.Scaling.DYNAMIC_PER_GROUP_E8M0, 32);
  }

  private final String title;
  private final QuantScheme scheme;
  private final String function;
  private final boolean biases;
  private final boolean lora;
  private final DType scales;

  /**
   * @param title of the row in the README
   * @param scheme of a layer's weights
   * @param function of the module
   * @param biases whether experts may have them
   * @param lora whether what the second product reads comes back in bf16, which its deltas need
   * @param scales the dtype that scales are given in: bytes of E8M0 either way
   */
  TrtllmScheme(
      String title,
      QuantScheme scheme,
      String function,
      boolean biases,
      boolean lora,
      DType scales) {
    this.title = title;
    this.scheme = scheme;
    this.function = function;
    this.biases = biases;
    this.lora = lora;
    this.scales = scales;
  }

  /** {@return the row for a config, empty where no row is for its scheme} */
  static Optional<TrtllmScheme> of(MoeConfig config) {
    return config
        .uniformScheme()
        .flatMap(s -> Arrays.stream(values()).filter(v -> v.scheme.equals(s)).findFirst());
  }

  String function() {
    return function;
  }

  boolean takesBiases() {
    return biases;
  }

  boolean takesLora() {
    return lora;
  }

  /** {@return whether hidden states become e4m3 with a scale for 32} */
  boolean quantisesInput() {
    return this == MXFP4_MXFP8 || this == MXFP8;
  }

  /** {@return whether two weights are a byte} */
  boolean isPacked() {
    return scheme.format() == QuantScheme.Format.FP4;
  }

  /** {@return the dtype that scales are given in} */
  DType scales() {
    return scales;
  }

  /** {@return the row of the README's table} */
  String row() {
    return "| "
        + title
        + " | `"
        + function
        + "` | "
        + (biases ? "yes" : "no")
        + " | "
        + (lora ? (biases ? "without biases" : "yes") : "no")
        + " |";
  }

  /** {@return all schemes, for refusals} */
  static String titles() {
    return String.join("; ", List.of(values()).stream().map(s -> s.title).toList());
  }
}
