package io.moe4j.api.config;

import java.util.Objects;

/**
 * The function between the w13 and the w2 product. With gate {@code g} and up {@code u}:
 *
 * <table>
 * <caption>Formulas</caption>
 * <tr><th>kind</th><th>value</th></tr>
 * <tr><td>SILU</td><td>{@code silu(min(g, limit)) * clip(u, -limit, limit)}; limit infinite = plain SiLU-and-mul</td></tr>
 * <tr><td>GELU</td><td>{@code gelu_erf(g) * u}</td></tr>
 * <tr><td>GELU_TANH</td><td>{@code gelu_tanh(g) * u}</td></tr>
 * <tr><td>SWIGLUOAI</td><td>{@code g' * sigmoid(alpha * g') * (u' + beta)}, {@code g' = min(g, limit)}, {@code u' = clip(u, ±limit)}</td></tr>
 * <tr><td>SWIGLU_STEP</td><td>{@code min(silu(g), limit) * clip(u, ±limit)}: the clamp comes after the SiLU</td></tr>
 * <tr><td>SILU_NO_MUL, GELU_NO_MUL, GELU_TANH_NO_MUL</td><td>the function of {@code u} alone, no gate</td></tr>
 * <tr><td>RELU2_NO_MUL</td><td>{@code max(u, 0)^2}, no gate</td></tr>
 * </table>
 *
 * How gate and up rows are laid out (halves or interleaved) belongs to the weights, see {@link
 * GateUpLayout}.
 *
 * @param kind the function
 * @param alpha factor inside the sigmoid of SWIGLUOAI; 1 elsewhere
 * @param beta added to {@code u} by SWIGLUOAI; 0 elsewhere
 * @param limit clamp, positive; {@link Float#POSITIVE_INFINITY} = none
 * @since 0.1.0
 */
public record Activation(Kind kind, float alpha, float beta, float limit) {
  /** Plain SiLU-and-mul, the most common one. */
  public static final Activation SILU = plain(Kind.SILU);

  /** GELU with erf, and mul. */
  public static final Activation GELU = plain(Kind.GELU);

  /** GELU in its tanh form, and mul. */
  public static final Activation GELU_TANH = plain(Kind.GELU_TANH);

  /** Squared ReLU without gate. */
  public static final Activation RELU2_NO_MUL = plain(Kind.RELU2_NO_MUL);

  /** gpt-oss: alpha 1.702, beta 1, limit 7. */
  public static final Activation SWIGLUOAI = new Activation(Kind.SWIGLUOAI, 1.702f, 1f, 7f);

  /** The functions. Open: later versions may add some, so a switch needs a default. */
  public enum Kind {
    /** See {@link Activation}. */
    SILU(true),
    /** See {@link Activation}. */
    GELU(true),
    /** See {@link Activation}. */
    GELU_TANH(true),
    /** See {@link Activation}. */
    SWIGLUOAI(true),
    /** See {@link Activation}. */
    SWIGLU_STEP(true),
    /** See {@link Activation}. */
    SILU_NO_MUL(false),
    /** See {@link Activation}. */
    GELU_NO_MUL(false),
    /** See {@link Activation}. */
    GELU_TANH_NO_MUL(false),
    /** See {@link Activation}. */
    RELU2_NO_MUL(false);

    private final boolean gated;

    Kind(boolean gated) {
      this.gated = gated;
    }

    /** {@return whether w13 holds gate and up rows, or up rows only} */
    public boolean isGated() {
      return gated;
    }
  }

  /**
   * Checks the components.
   *
   * @param kind the function
   * @param alpha finite
   * @param beta finite
   * @param limit positive
   */
  public Activation {
    Objects.requireNonNull(kind, "kind");
    if (!(limit > 0)) {
      throw new IllegalArgumentException(
          "limit is " + limit + ", must be positive (infinite = no clamp)");
    }
    if (!Float.isFinite(alpha) || !Float.isFinite(beta)) {
      throw new IllegalArgumentException(
          "alpha " + alpha + " and beta " + beta + " must be finite");
    }
  }

  /**
   * A function with its usual parameters and no clamp; SWIGLUOAI is the constant of that name.
   *
   * @param kind the function
   * @return the activation
   */
  public static Activation plain(Kind kind) {
    return kind == Kind.SWIGLUOAI
        ? new Activation(kind, 1.702f, 1f, 7f)
        : new Activation(kind, 1f, 0f, Float.POSITIVE_INFINITY);
  }

  /**
   * The same function with a clamp.
   *
   * @param limit positive
   * @return the clamped activation
   */
  public Activation withLimit(float limit) {
    return new Activation(kind, alpha, beta, limit);
  }

  /** {@return whether w13 holds gate and up rows, or up rows only} */
  public boolean isGated() {
    return kind.isGated();
  }
}
