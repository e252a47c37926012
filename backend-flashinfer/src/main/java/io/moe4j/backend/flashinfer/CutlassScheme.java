package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * What the {@code fused_moe_<sm>} module computes that this backend passes on to it: the one table
 * of {@code flashinfer-cutlass}. {@link CutlassSupport} answers from it, {@link CutlassRunner}
 * makes the module's object from it, and a test holds the README's table to it.
 */
@SuppressWarnings("ImmutableEnumChecker") // a QuantScheme is a value
enum CutlassScheme {
  /** Plain weights. */
  PLAIN("none", QuantScheme.NONE, true, "9.0 10.0 10.3 12.x", 0, 8, Input.AS_IS),

  /**
   * FP8 weights with one scale a tensor, activations quantised with the checkpoint's scales: what
   * the module wants is e4m3 input, which this backend makes.
   */
  FP8_TENSOR(
      "fp8 per tensor, activations fp8 static",
      QuantScheme.builder(QuantScheme.Format.FP8)
          .perTensor()
          .activations(ActivationQuant.FP8_STATIC)
          .build(),
      true,
      "9.0 10.0 10.3 12.x",
      0,
      16,
      Input.FP8),

  /**
   * FP8 weights with a scale for 128 x 128 of them, activations quantised inside. The module
   * compiles its kernels at the first forward of a shape, from headers of FlashInfer's Python
   * package.
   */
  FP8_BLOCK(
      "fp8 block 128x128, activations fp8 in groups of 128",
      QuantScheme.FP8_BLOCK.toBuilder().activations(ActivationQuant.FP8_PER_BLOCK).build(),
      false,
      "9.0",
      0,
      128,
      Input.AS_IS),

  /** FP4 weights with E8M0 scales for 32, activations as they are: Hopper's mixed GEMM. */
  MXFP4("mxfp4", QuantScheme.MXFP4, false, "9.0", 10, 32, Input.AS_IS),

  /**
   * FP4 weights with E8M0 scales for 32, e4m3 activations with the same. From 0.6.8 on scales may
   * come row by row.
   */
  MXFP4_MXFP8(
      "mxfp4, activations mxfp8",
      QuantScheme.MXFP4.toBuilder().activations(Mx.FP8).build(),
      true,
      "10.0 10.3 12.x",
      8,
      128,
      Input.MXFP8),

  /** FP8 weights with E8M0 scales for 32, e4m3 activations with the same. */
  MXFP8(
      "mxfp8, activations mxfp8",
      QuantScheme.MXFP8.toBuilder().activations(Mx.FP8).build(),
      true,
      "10.0 10.3",
      8,
      128,
      Input.MXFP8),

  /** FP4 weights with E4M3 scales for 16 and a global one, activations likewise, made inside. */
  NVFP4(
      "nvfp4, activations nvfp4",
      QuantScheme.NVFP4.toBuilder().activations(ActivationQuant.NVFP4).build(),
      true,
      "10.0 10.3 12.x",
      0,
      128,
      Input.AS_IS);

  /** What becomes of hidden states before the module gets them. */
  enum Input {
    /** Nothing, but for their dtype. */
    AS_IS,
    /** E4m3 under one stored scale. */
    FP8,
    /** E4m3 with E8M0 scales for 32. */
    MXFP8
  }

  private static final class Mx {
    private static final ActivationQuant FP8 =
        new ActivationQuant(
            QuantScheme.Format.FP8, ActivationQuant.Scaling.DYNAMIC_PER_GROUP_E8M0, 32);
  }

  private final String title;
  private final QuantScheme scheme;
  private final boolean half;
  private final String capabilities;
  private final int firstPatch;
  private final int multiple;
  private final Input input;

  /**
   * @param title of the row in the README
   * @param scheme of a layer's weights
   * @param half whether hidden states may be f16 as well as bf16
   * @param capabilities of devices, {@code x} = any
   * @param firstPatch the first 0.6.* whose module has it as it is called here
   * @param multiple that H and I must be multiples of
   * @param input what becomes of hidden states
   */
  CutlassScheme(
      String title,
      QuantScheme scheme,
      boolean half,
      String capabilities,
      int firstPatch,
      int multiple,
      Input input) {
    this.title = title;
    this.scheme = scheme;
    this.half = half;
    this.capabilities = capabilities;
    this.firstPatch = firstPatch;
    this.multiple = multiple;
    this.input = input;
  }

  QuantScheme scheme() {
    return scheme;
  }

  private List<DType> dtypes() {
    return half ? List.of(DType.BF16, DType.F16) : List.of(DType.BF16);
  }

  /** {@return the row for a config, empty where no row is for its scheme} */
  static Optional<CutlassScheme> of(MoeConfig config) {
    return config.uniformScheme().flatMap(CutlassScheme::of);
  }

  private static Optional<CutlassScheme> of(QuantScheme scheme) {
    for (CutlassScheme s : values()) {
      if (s.scheme.equals(scheme)) {
        return Optional.of(s);
      }
    }
    return Optional.empty();
  }

  /** {@return the dtype that the module is told the weights have} */
  DType weightDtype(DType activations) {
    return switch (this) {
      case PLAIN -> activations;
      case FP8_TENSOR, FP8_BLOCK, MXFP8 -> DType.F8_E4M3;
      case MXFP4 -> DType.U8;
      case MXFP4_MXFP8, NVFP4 -> DType.I64; // sixteen weights each
    };
  }

  /** {@return what becomes of hidden states} */
  Input input() {
    return input;
  }

  /** {@return the dtype that the module reads hidden states in} */
  DType inputDtype(DType activations) {
    return input == Input.AS_IS ? activations : DType.F8_E4M3;
  }

  /** {@return whether the module mixes 16-bit activations with weights of two a byte} */
  boolean isMixed() {
    return this == MXFP4;
  }

  /** {@return whether one kernel can be told from another} */
  boolean hasTactics() {
    return this != FP8_BLOCK;
  }

  /** {@return whether kernels are compiled at run time, from headers of the Python package} */
  boolean needsHeaders() {
    return this == FP8_BLOCK;
  }

  /** {@return a width as the kernels see it: padded where they take whole tiles only} */
  long padded(long width) {
    return isMixed() ? Math.ceilDiv(width, (long) Mxfp4Weights.TILE) * Mxfp4Weights.TILE : width;
  }

  /** {@return the first FlashInfer whose module has it} */
  int firstPatch() {
    return firstPatch;
  }

  boolean runsOn(ComputeCapability capability) {
    for (String c : capabilities.split(" ", -1)) {
      if (c.equals(capability.toString()) || c.equals(capability.major() + ".x")) {
        return true;
      }
    }
    return false;
  }

  /** Adds every reason why a layer of this scheme cannot be computed. */
  void check(MoeConfig config, Optional<ComputeCapability> capability, Support.Checks checks) {
    capability.ifPresent(c ->
        checks.require(
            runsOn(c),
            Code.CAPABILITY,
            () -> scheme + " on capability " + c + ", FlashInfer has it for " + capabilities));
    checks.require(
        half || config.inputDtype() != DType.F16,
        Code.DTYPE,
        () -> scheme + " with input dtype F16, must be BF16");
    checks.require(
        config.expertHiddenSize() % multiple == 0 && config.intermediateSize() % multiple == 0,
        Code.SIZE,
        () ->
            scheme
                + " with widths "
                + config.expertHiddenSize()
                + " and "
                + config.intermediateSize()
                + ", not both multiples of "
                + multiple);
  }

  /** {@return the row of the README's table} */
  String row() {
    return "| "
        + title
        + " | "
        + String.join(", ", dtypes().stream().map(d -> d.name().toLowerCase(Locale.ROOT)).toList())
        + " | "
        + capabilities.replace(" ", ", ")
        + " | "
        + multiple
        + " | 0.6."
        + firstPatch
        + " |";
  }

  /** {@return all schemes, for refusals} */
  static String titles() {
    return String.join("; ", java.util.Arrays.stream(values()).map(s -> s.title).toList());
  }
}
