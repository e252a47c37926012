package io.moe4j.backend.flashinfer;

import io.moe4j.api.config.Activation;
import java.util.Optional;

/**
 * FlashInfer's number for an activation, and its parameters. Numbers that stay the same in all
 * versions that are known; {@code SwigluStep} came with 0.6.13, {@code GegluTanh} with 0.6.14.
 *
 * @param number as {@code base_activation_type} takes it
 * @param firstPatch the first 0.6.* that has it
 * @param alpha factor in the sigmoid; read only where {@link #parameters}
 * @param beta added to up
 * @param limit clamp
 * @param parameters whether the module is given the parameters, one of each an expert
 */
record MoeActivation(
    int number, int firstPatch, float alpha, float beta, float limit, boolean parameters) {
  private static final int SILU_NO_MUL = 2;
  private static final int SWIGLU = 3;
  private static final int GEGLU = 4;
  private static final int SWIGLU_BIAS = 5;
  private static final int RELU2 = 6;
  private static final int SWIGLU_STEP = 7;
  private static final int GEGLU_TANH = 8;

  /** {@return FlashInfer's activation, empty where it has none that computes the same} */
  static Optional<MoeActivation> of(Activation a) {
    boolean clamped = Float.isFinite(a.limit());
    return switch (a.kind()) {
      // A clamped SiLU is SwigluBias with alpha 1 and beta 0.
      case SILU ->
          Optional.of(
              clamped
                  ? new MoeActivation(SWIGLU_BIAS, 0, 1, 0, a.limit(), true)
                  : plain(SWIGLU, 0));
      case SWIGLUOAI ->
          Optional.of(new MoeActivation(SWIGLU_BIAS, 0, a.alpha(), a.beta(), a.limit(), true));
      case GELU -> unclamped(clamped, plain(GEGLU, 0));
      case GELU_TANH -> unclamped(clamped, plain(GEGLU_TANH, 14));
      case SWIGLU_STEP -> Optional.of(new MoeActivation(SWIGLU_STEP, 13, 1, 0, a.limit(), true));
      case SILU_NO_MUL -> unclamped(clamped, plain(SILU_NO_MUL, 0));
      case RELU2_NO_MUL -> unclamped(clamped, plain(RELU2, 0));
      case GELU_NO_MUL, GELU_TANH_NO_MUL -> Optional.empty();
    };
  }

  /** {@return whether it is SiLU with a gate, with or without parameters} */
  boolean isSwiglu() {
    return number == SWIGLU || number == SWIGLU_BIAS;
  }

  private static MoeActivation plain(int number, int firstPatch) {
    return new MoeActivation(number, firstPatch, 1, 0, Float.POSITIVE_INFINITY, false);
  }

  private static Optional<MoeActivation> unclamped(boolean clamped, MoeActivation a) {
    return clamped ? Optional.empty() : Optional.of(a);
  }
}
