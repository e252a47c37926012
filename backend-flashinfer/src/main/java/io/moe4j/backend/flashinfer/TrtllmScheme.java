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
  PLAIN("none", QuantScheme.NONE, "trtllm_bf16_moe", Input.AS_IS, DType.U8, "L P"),

  /** FP8 weights with one scale a tensor, activations with the checkpoint's scales. */
  FP8_TENSOR(
      "fp8 per tensor, activations fp8 static",
      QuantScheme.builder(QuantScheme.Format.FP8)
          .perTensor()
          .activations(ActivationQuant.FP8_STATIC)
          .build(),
      "trtllm_fp8_per_tensor_scale_routed_moe",
      Input.FP8,
      DType.F32,
      ""),

  /** FP8 weights with a scale for 128 x 128, activations with one for 128 of a row. */
  FP8_BLOCK(
      "fp8 block 128x128, activations fp8 in groups of 128",
      QuantScheme.FP8_BLOCK.toBuilder().activations(ActivationQuant.FP8_PER_BLOCK).build(),
      "trtllm_fp8_block_scale_moe",
      Input.FP8_BLOCK,
      DType.F32,
      "P"),

  /** FP4 weights with E8M0 scales for 32, bf16 activations. */
  MXFP4(
      "mxfp4",
      QuantScheme.MXFP4,
      "trtllm_fp4_block_scale_moe",
      Input.AS_IS,
      DType.F8_E4M3,
      "B L P"),

  /** The same, e4m3 activations with E8M0 scales for 32. */
  MXFP4_MXFP8(
      "mxfp4, activations mxfp8",
      QuantScheme.MXFP4.toBuilder().activations(Mx.FP8).build(),
      "trtllm_fp4_block_scale_moe",
      Input.MXFP8,
      DType.F8_E4M3,
      "B P"),

  /** FP8 weights with E8M0 scales for 32, activations likewise. */
  MXFP8(
      "mxfp8, activations mxfp8",
      QuantScheme.MXFP8.toBuilder().activations(Mx.FP8).build(),
      "trtllm_fp8_block_scale_moe",
      Input.MXFP8,
      DType.U8,
      "P"),

  /** FP4 weights with E4M3 scales for 16 and a global one, activations likewise. */
  NVFP4(
      "nvfp4, activations nvfp4",
      QuantScheme.NVFP4.toBuilder().activations(ActivationQuant.NVFP4).build(),
      "trtllm_fp4_block_scale_moe",
      Input.NVFP4,
      DType.F8_E4M3,
      ""),

  /** Four-bit integers with a bf16 scale for 32, bf16 activations. */
  MXINT4(
      "int4 group 32",
      QuantScheme.int4(32),
      "trtllm_mxint4_block_scale_moe",
      Input.AS_IS,
      DType.BF16,
      "L P");

  /** What becomes of hidden states before the module gets them. */
  enum Input {
    /** Nothing, but for their dtype and width. */
    AS_IS(0),
    /** E4m3 under one stored scale. */
    FP8(0),
    /** E4m3 with F32 scales for 128, those of all tokens together. */
    FP8_BLOCK(128),
    /** E4m3 with E8M0 scales for 32. */
    MXFP8(32),
    /** E2m1, two a byte, with E4M3 scales for 16 under one stored scale. */
    NVFP4(16);

    private final int group;

    Input(int group) {
      this.group = group;
    }

    /** {@return elements that share a scale, 0 where there are no scales beside the codes} */
    int group() {
      return group;
    }
  }

  private static final class Mx {
    private static final ActivationQuant FP8 =
        new ActivationQuant(
            QuantScheme.Format.FP8, ActivationQuant.Scaling.DYNAMIC_PER_GROUP_E8M0, 32);
  }

  /** Widths are whole tiles of the kernels. */
  private static final int TILE = 128;

  /** Two four-bit integers a byte, and pieces of rows are 128 bytes. */
  private static final int MXINT4_TILE = 256;

  private final String title;
  private final QuantScheme scheme;
  private final String function;
  private final Input input;
  private final DType scales;
  private final boolean biases;
  private final boolean lora;
  private final boolean parameters;

  /**
   * @param title of the row in the README
   * @param scheme of a layer's weights
   * @param function of the module
   * @param input what becomes of hidden states
   * @param scales the dtype that the weights' scales are given in
   * @param can B = experts may have biases; L = what the second product reads comes back in bf16,
   *     which its LoRA deltas need; P = the activation may have a limit and gpt-oss's parameters
   */
  TrtllmScheme(
      String title, QuantScheme scheme, String function, Input input, DType scales, String can) {
    this.title = title;
    this.scheme = scheme;
    this.function = function;
    this.input = input;
    this.scales = scales;
    this.biases = can.contains("B");
    this.lora = can.contains("L");
    this.parameters = can.contains("P");
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

  /** {@return of the weights} */
  QuantScheme scheme() {
    return scheme;
  }

  boolean takesBiases() {
    return biases;
  }

  boolean takesLora() {
    return lora;
  }

  /** {@return whether the activation may have a limit and gpt-oss's parameters} */
  boolean takesParameters() {
    return parameters;
  }

  /** {@return what becomes of hidden states} */
  Input input() {
    return input;
  }

  /** {@return whether two weights are a byte} */
  boolean isPacked() {
    return scheme.bits() == 4;
  }

  /** {@return whether each 32 rows stand in the epilogue's order, up and gate in turns} */
  boolean isShuffled() {
    return this != FP8_BLOCK;
  }

  /** {@return whether the same 128 bytes of all rows stand together} */
  boolean isInPieces() {
    return this == PLAIN || this == MXINT4;
  }

  /** {@return whether a token's ids are given packed with their weights, which bf16 then rounds} */
  boolean packsRouting() {
    return this == MXINT4;
  }

  /** {@return whether the products have a scale for each expert beside those of groups} */
  boolean hasTensorScales() {
    return this == FP8_TENSOR || this == NVFP4;
  }

  /** {@return the dtype that scales are given in} */
  DType scales() {
    return scales;
  }

  /** {@return a width in whole tiles} */
  long padded(long width) {
    int tile = this == MXINT4 ? MXINT4_TILE : TILE;
    return Math.ceilDiv(width, (long) tile) * tile;
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
        + (parameters ? "yes" : "no")
        + " | "
        + (lora ? (biases ? "without biases" : "yes") : "no")
        + " |";
  }

  /** {@return all schemes, for refusals} */
  static String titles() {
    return String.join("; ", List.of(values()).stream().map(s -> s.title).toList());
  }
}
