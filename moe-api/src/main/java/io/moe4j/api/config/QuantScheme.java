package io.moe4j.api.config;

import java.util.List;
import java.util.Objects;
import java.util.Optional;

/**
 * How the elements of a weight are coded, and what a checkpoint means activations to be: enough for
 * a backend to say yes or no. How the codes lie in memory belongs to the weight, see {@link
 * io.moe4j.api.weights.Weight}.
 *
 * <p>With {@code q} the code, {@code z} the zero point, {@code s} the scale and {@code g} the
 * global scale, the weight is {@code (q - z) * s * g}. One scale serves {@link #scaleRows} rows
 * (outputs) and {@link #scaleColumns} columns (inputs); with {@link #actOrder()} the group of a
 * column is looked up in the weight's group index instead. A value; equal schemes are equal.
 *
 * @since 0.2.0
 */
public final class QuantScheme {
  /** What a code is. Open: later versions may add formats, so a switch needs a default. */
  public enum Format {
    /** Plain floating point, no scales. */
    NONE(0),
    /** 4-bit integer; unsigned in packed words, {@code 0..15}. */
    INT4(4),
    /** 8-bit integer; unsigned in packed words, signed as {@code I8} elements. */
    INT8(8),
    /** 8-bit float E4M3 without infinities. */
    FP8(8),
    /** 4-bit float E2M1. */
    FP4(4);

    private final int bits;

    Format(int bits) {
      this.bits = bits;
    }

    /** {@return bits of a code, 0 for {@link #NONE}} */
    public int bits() {
      return bits;
    }

    boolean isInteger() {
      return this == INT4 || this == INT8;
    }
  }

  /** How scales are stored. Open: later versions may add some. */
  public enum ScaleFormat {
    /** F32, BF16 or F16. */
    FLOAT,
    /** A power of two ({@link io.moe4j.api.tensor.DType#F8_E8M0}), as in the OCP MX formats. */
    E8M0,
    /** {@link io.moe4j.api.tensor.DType#F8_E4M3} times a global scale of the weight (NVFP4). */
    E4M3
  }

  /** Plain floating-point weights. */
  public static final QuantScheme NONE = new Builder(Format.NONE).build();

  /** FP4 with an E8M0 scale for 32 inputs (OCP Microscaling Formats v1.0), as gpt-oss has it. */
  public static final QuantScheme MXFP4 =
      builder(Format.FP4).group(32).scaleFormat(ScaleFormat.E8M0).build();

  /** FP8 with an E8M0 scale for 32 inputs (OCP Microscaling Formats v1.0). */
  public static final QuantScheme MXFP8 =
      builder(Format.FP8).group(32).scaleFormat(ScaleFormat.E8M0).build();

  /** FP4 with an E4M3 scale for 16 inputs and a global scale. */
  public static final QuantScheme NVFP4 =
      builder(Format.FP4).group(16).scaleFormat(ScaleFormat.E4M3).build();

  /** FP8 with one scale for 128 x 128 weights (DeepSeek-V3). */
  public static final QuantScheme FP8_BLOCK = builder(Format.FP8).block(128, 128).build();

  /** Stands for "all of them" in {@link #scaleRows} and {@link #scaleColumns}. */
  public static final int ALL = 0;

  private final Format format;
  private final int scaleRows;
  private final int scaleColumns;
  private final ScaleFormat scaleFormat;
  private final boolean symmetric;
  private final boolean actOrder;
  private final ActivationQuant activations;

  private QuantScheme(Builder b) {
    format = b.format;
    scaleRows = b.scaleRows;
    scaleColumns = b.scaleColumns;
    scaleFormat = b.scaleFormat;
    symmetric = b.symmetric;
    actOrder = b.actOrder;
    activations = b.activations;
  }

  /**
   * A scheme with one symmetric scale a tensor, unless said otherwise.
   *
   * @param format what a code is
   * @return a new builder
   */
  public static Builder builder(Format format) {
    return new Builder(format);
  }

  /**
   * {@return a symmetric 4-bit integer scheme}
   *
   * @param groupSize inputs that share a scale, at least 1; {@link #ALL} = one scale an output
   */
  public static QuantScheme int4(int groupSize) {
    return builder(Format.INT4).group(groupSize).build();
  }

  /**
   * {@return a symmetric 8-bit integer scheme}
   *
   * @param groupSize inputs that share a scale, at least 1; {@link #ALL} = one scale an output
   */
  public static QuantScheme int8(int groupSize) {
    return builder(Format.INT8).group(groupSize).build();
  }

  /** {@return what a code is} */
  public Format format() {
    return format;
  }

  /** {@return bits of a code; 0 for plain floats} */
  public int bits() {
    return format.bits();
  }

  /** {@return rows (outputs) that share a scale: 1, a block's height, or {@link #ALL}} */
  public int scaleRows() {
    return scaleRows;
  }

  /**
   * {@return columns (inputs) that share a scale: the group size, a block's width, or {@link #ALL}}
   */
  public int scaleColumns() {
    return scaleColumns;
  }

  /** {@return how scales are stored} */
  public ScaleFormat scaleFormat() {
    return scaleFormat;
  }

  /** {@return whether the zero point is fixed, so that no zero points are stored} */
  public boolean symmetric() {
    return symmetric;
  }

  /** {@return whether a group index says which group a column belongs to (GPTQ's desc_act)} */
  public boolean actOrder() {
    return actOrder;
  }

  /** {@return what the checkpoint means activations to be; {@link ActivationQuant#NONE} mostly} */
  public ActivationQuant activations() {
    return activations;
  }

  /** {@return whether weights are plain floats} */
  public boolean isNone() {
    return format == Format.NONE;
  }

  /** {@return the same weights, whatever the checkpoint says of activations} */
  public QuantScheme weightOnly() {
    return toBuilder().activations(ActivationQuant.NONE).build();
  }

  /**
   * {@return scales along the outputs of a weight}
   *
   * @param out its outputs
   */
  public long scaleRowCount(long out) {
    return scaleRows == ALL ? 1 : Math.ceilDiv(out, scaleRows);
  }

  /**
   * {@return scales along the inputs of a weight; the last group may be short}
   *
   * @param in its inputs
   */
  public long scaleColumnCount(long in) {
    return scaleColumns == ALL ? 1 : Math.ceilDiv(in, scaleColumns);
  }

  /** {@return a builder that starts from this scheme} */
  public Builder toBuilder() {
    Builder b = new Builder(format);
    b.scaleRows = scaleRows;
    b.scaleColumns = scaleColumns;
    b.scaleFormat = scaleFormat;
    b.symmetric = symmetric;
    b.actOrder = actOrder;
    b.activations = activations;
    return b;
  }

  private List<Object> values() {
    return List.of(format, scaleRows, scaleColumns, scaleFormat, symmetric, actOrder, activations);
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof QuantScheme s && s.values().equals(values());
  }

  @Override
  public int hashCode() {
    return values().hashCode();
  }

  /**
   * Like {@code int4 group 128 act-order}, {@code fp8 block 128x128}, {@code nvfp4}, {@code none}.
   *
   * @return the scheme in words
   */
  @Override
  public String toString() {
    if (isNone()) {
      return "none";
    }
    StringBuilder text = new StringBuilder();
    Optional<String> name = wellKnownName();
    if (name.isPresent()) {
      text.append(name.get());
    } else {
      text.append(format.name().toLowerCase(java.util.Locale.ROOT));
      if (scaleRows == ALL) {
        text.append(" per tensor");
      } else if (scaleRows > 1) {
        text.append(" block ").append(scaleRows).append('x').append(scaleColumns);
      } else {
        text.append(scaleColumns == ALL ? " per channel" : " group " + scaleColumns);
      }
      if (scaleFormat != ScaleFormat.FLOAT) {
        text.append(" scales ").append(scaleFormat);
      }
    }
    if (!symmetric) {
      text.append(" asymmetric");
    }
    if (actOrder) {
      text.append(" act-order");
    }
    if (!activations.isNone()) {
      text.append(", activations ").append(activations);
    }
    return text.toString();
  }

  private Optional<String> wellKnownName() {
    if (scaleRows != 1 || scaleFormat == ScaleFormat.FLOAT) {
      return Optional.empty();
    }
    if (scaleFormat == ScaleFormat.E8M0 && scaleColumns == 32) {
      return Optional.of(format == Format.FP4 ? "mxfp4" : "mxfp8");
    }
    return scaleFormat == ScaleFormat.E4M3 && scaleColumns == 16
        ? Optional.of("nvfp4")
        : Optional.empty();
  }

  /** Sets one thing at a time; not thread-safe. */
  public static final class Builder {
    private final Format format;
    private int scaleRows = ALL;
    private int scaleColumns = ALL;
    private ScaleFormat scaleFormat = ScaleFormat.FLOAT;
    private boolean symmetric = true;
    private boolean actOrder;
    private ActivationQuant activations = ActivationQuant.NONE;

    private Builder(Format format) {
      this.format = Objects.requireNonNull(format, "format");
    }

    /**
     * One scale for the whole weight.
     *
     * @return this
     */
    public Builder perTensor() {
      return scales(ALL, ALL);
    }

    /**
     * One scale an output.
     *
     * @return this
     */
    public Builder perChannel() {
      return scales(1, ALL);
    }

    /**
     * One scale for some inputs of an output.
     *
     * @param groupSize inputs, at least 1; {@link #ALL} = all of them
     * @return this
     */
    public Builder group(int groupSize) {
      return scales(1, groupSize);
    }

    /**
     * One scale for a block.
     *
     * @param rows outputs, at least 1
     * @param columns inputs, at least 1
     * @return this
     */
    public Builder block(int rows, int columns) {
      return scales(rows, columns);
    }

    private Builder scales(int rows, int columns) {
      this.scaleRows = rows;
      this.scaleColumns = columns;
      return this;
    }

    /**
     * How scales are stored.
     *
     * @param format FLOAT unless set
     * @return this
     */
    public Builder scaleFormat(ScaleFormat format) {
      this.scaleFormat = Objects.requireNonNull(format, "scaleFormat");
      return this;
    }

    /**
     * Whether zero points are fixed.
     *
     * @param symmetric true unless set
     * @return this
     */
    public Builder symmetric(boolean symmetric) {
      this.symmetric = symmetric;
      return this;
    }

    /**
     * Whether columns have a group index.
     *
     * @param actOrder false unless set
     * @return this
     */
    public Builder actOrder(boolean actOrder) {
      this.actOrder = actOrder;
      return this;
    }

    /**
     * What the checkpoint means activations to be.
     *
     * @param activations {@link ActivationQuant#NONE} unless set
     * @return this
     */
    public Builder activations(ActivationQuant activations) {
      this.activations = Objects.requireNonNull(activations, "activations");
      return this;
    }

    /**
     * {@return the scheme}
     *
     * @throws IllegalArgumentException if a size is negative or two settings contradict
     */
    public QuantScheme build() {
      if (scaleRows < 0 || scaleColumns < 0) {
        throw new IllegalArgumentException(
            "a scale serves "
                + scaleRows
                + " rows and "
                + scaleColumns
                + " columns; both must be at least 1, or ALL = 0");
      }
      if (format == Format.NONE && (scaleRows != ALL || scaleColumns != ALL || actOrder)) {
        throw new IllegalArgumentException("plain floats have neither scales nor a group index");
      }
      if (!format.isInteger() && !symmetric) {
        throw new IllegalArgumentException(
            "format " + format + " has no zero points, so it is symmetric");
      }
      if (actOrder && (scaleRows != 1 || scaleColumns == ALL)) {
        throw new IllegalArgumentException(
            "act-order needs groups of inputs; with one scale for all inputs it means nothing");
      }
      return new QuantScheme(this);
    }
  }
}
