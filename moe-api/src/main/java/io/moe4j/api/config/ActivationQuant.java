package io.moe4j.api.config;

import java.util.Locale;

/**
 * What a quantised checkpoint means the inputs of its linear maps to be. A layer computes with
 * unquantised activations unless its config asks for this ({@link
 * MoeConfig#quantizedActivations()}). Adapters always meet the unquantised activation.
 *
 * @param format what an activation becomes; {@link QuantScheme.Format#NONE} = stays as it is
 * @param scaling where its scale comes from
 * @param groupSize inputs that share a scale where groups have scales, else 0
 * @since 0.2.0
 */
public record ActivationQuant(QuantScheme.Format format, Scaling scaling, int groupSize) {
  /** Where scales come from. Open: later versions may add some. */
  public enum Scaling {
    /** No scale, no quantisation. */
    NONE,
    /** The largest magnitude of a token's row. */
    DYNAMIC_PER_TOKEN,
    /** The largest magnitude of each group of inputs of a token. */
    DYNAMIC_PER_GROUP,
    /** One scale, stored with the weight. */
    STATIC,
    /**
     * A global scale stored with the weight, times a scale for each group from its largest
     * magnitude (NVFP4).
     */
    STATIC_AND_PER_GROUP,
    /**
     * As {@link #DYNAMIC_PER_GROUP}, the scale rounded up to a power of two (MX formats, ue8m0).
     *
     * @since 0.2.0
     */
    DYNAMIC_PER_GROUP_E8M0
  }

  /** Activations stay as they are. */
  public static final ActivationQuant NONE =
      new ActivationQuant(QuantScheme.Format.NONE, Scaling.NONE, 0);

  /** INT8 with a scale a token: {@code amax / 127}. */
  public static final ActivationQuant INT8_PER_TOKEN =
      new ActivationQuant(QuantScheme.Format.INT8, Scaling.DYNAMIC_PER_TOKEN, 0);

  /** FP8 with a scale a token: {@code amax / 448}. */
  public static final ActivationQuant FP8_PER_TOKEN =
      new ActivationQuant(QuantScheme.Format.FP8, Scaling.DYNAMIC_PER_TOKEN, 0);

  /** FP8 with a scale for 128 inputs of a token: {@code amax / 448}. */
  public static final ActivationQuant FP8_PER_BLOCK =
      new ActivationQuant(QuantScheme.Format.FP8, Scaling.DYNAMIC_PER_GROUP, 128);

  /** FP8 with one stored scale. */
  public static final ActivationQuant FP8_STATIC =
      new ActivationQuant(QuantScheme.Format.FP8, Scaling.STATIC, 0);

  /** FP4 in groups of 16 under a stored global scale (NVFP4). */
  public static final ActivationQuant NVFP4 =
      new ActivationQuant(QuantScheme.Format.FP4, Scaling.STATIC_AND_PER_GROUP, 16);

  /**
   * Checks the components.
   *
   * @param format what an activation becomes
   * @param scaling where its scale comes from
   * @param groupSize at least 1 where groups have scales, else 0
   */
  public ActivationQuant {
    boolean grouped =
        scaling == Scaling.DYNAMIC_PER_GROUP
            || scaling == Scaling.STATIC_AND_PER_GROUP
            || scaling == Scaling.DYNAMIC_PER_GROUP_E8M0;
    if (grouped ? groupSize < 1 : groupSize != 0) {
      throw new IllegalArgumentException(
          "groupSize is "
              + groupSize
              + " with scaling "
              + scaling
              + ", must be "
              + (grouped ? "at least 1" : "0"));
    }
    if ((format == QuantScheme.Format.NONE) != (scaling == Scaling.NONE)) {
      throw new IllegalArgumentException(
          "format is " + format + " with scaling " + scaling + "; NONE goes with NONE");
    }
  }

  /** {@return whether activations stay as they are} */
  public boolean isNone() {
    return scaling == Scaling.NONE;
  }

  /**
   * Like {@code fp8 dynamic per group 128}.
   *
   * @return the rule in words
   */
  @Override
  public String toString() {
    return isNone()
        ? "none"
        : (format + " " + scaling.name().replace('_', ' ')).toLowerCase(Locale.ROOT)
            + (groupSize > 0 ? " " + groupSize : "");
  }
}
