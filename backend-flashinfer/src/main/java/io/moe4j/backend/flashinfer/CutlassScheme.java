package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.api.spi.Support;
import io.moe4j.api.spi.Support.Code;
import io.moe4j.api.tensor.DType;
import java.util.List;
import java.util.Optional;

/**
 * What the {@code fused_moe_<sm>} module computes that this backend passes on to it: the one table
 * of {@code flashinfer-cutlass}. {@link CutlassSupport} answers from it, {@link CutlassRunner}
 * makes the module's object from it, and a test holds the README's table to it.
 */
enum CutlassScheme {
  /** Plain weights. */
  PLAIN("none", true, "9.0 10.0 10.3 12.x", 0, 8),

  /**
   * FP8 weights with one scale a tensor, activations quantised with the checkpoint's scales: what
   * the module wants is e4m3 input, which this backend makes.
   */
  FP8_TENSOR("fp8 per tensor, activations fp8 static", true, "9.0 10.0 10.3 12.x", 0, 16),

  /** FP4 weights with E8M0 scales for 32, activations as they are: Hopper's mixed GEMM. */
  MXFP4("mxfp4", false, "9.0", 10, 128);

  private final String title;
  private final boolean half;
  private final String capabilities;
  private final int firstPatch;
  private final int multiple;

  /**
   * @param title of the row in the README
   * @param half whether hidden states may be f16 as well as bf16
   * @param capabilities of devices, {@code x} = any
   * @param firstPatch the first 0.6.* whose module has it
   * @param multiple that H and I must be multiples of
   */
  CutlassScheme(String title, boolean half, String capabilities, int firstPatch, int multiple) {
    this.title = title;
    this.half = half;
    this.capabilities = capabilities;
    this.firstPatch = firstPatch;
    this.multiple = multiple;
  }

  private QuantScheme scheme() {
    return switch (this) {
      case PLAIN -> QuantScheme.NONE;
      case FP8_TENSOR ->
          QuantScheme.builder(QuantScheme.Format.FP8)
              .perTensor()
              .activations(ActivationQuant.FP8_STATIC)
              .build();
      case MXFP4 -> QuantScheme.MXFP4;
    };
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
      if (s.scheme().equals(scheme)) {
        return Optional.of(s);
      }
    }
    return Optional.empty();
  }

  /** {@return the dtype that the module is told the weights have} */
  DType weightDtype(DType activations) {
    return switch (this) {
      case PLAIN -> activations;
      case FP8_TENSOR -> DType.F8_E4M3;
      case MXFP4 -> DType.U8;
    };
  }

  /** {@return the dtype that the module reads hidden states in} */
  DType inputDtype(DType activations) {
    return this == FP8_TENSOR ? DType.F8_E4M3 : activations;
  }

  /** {@return whether the module packs two weights into a byte and scales groups of them} */
  boolean isFourBit() {
    return this == MXFP4;
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
            () -> scheme() + " on capability " + c + ", FlashInfer has it for " + capabilities));
    checks.require(
        half || config.inputDtype() != DType.F16,
        Code.DTYPE,
        () -> scheme() + " with input dtype F16, must be BF16");
    checks.require(
        config.expertHiddenSize() % multiple == 0 && config.intermediateSize() % multiple == 0,
        Code.SIZE,
        () ->
            scheme()
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
        + String.join(
            ", ", dtypes().stream().map(d -> d.name().toLowerCase(java.util.Locale.ROOT)).toList())
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
