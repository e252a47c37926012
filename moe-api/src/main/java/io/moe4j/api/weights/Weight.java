package io.moe4j.api.weights;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.util.Objects;
import java.util.Optional;
import java.util.function.UnaryOperator;
import org.jspecify.annotations.Nullable;

/**
 * One linear map {@code [out, in]} as a checkpoint stores it: plain, or codes with scales. Views
 * only, nothing is copied or unpacked; the memory belongs to the caller, who keeps it alive while
 * anything prepared from it is open. Immutable, safe for threads.
 *
 * <p>The value of weight {@code [o, i]} is
 *
 * <pre>
 *   plain       values[o, i]
 *   quantised   (code(o, i) - zero(o, group(i))) * scales[o / scaleRows, group(i)] * global
 * </pre>
 *
 * with {@code group(i) = groupIndex[i]}, or {@code i / scaleColumns} without an index. The zero
 * point is 0 for floats and for dense I8 codes, {@code 2^(bits - 1)} for packed symmetric integers,
 * and otherwise stored. {@code io.moe4j.reference.Dequantize} computes it in float64.
 *
 * @since 0.2.0
 */
public final class Weight {
  private final String name;
  private final long out;
  private final long in;
  private final QuantScheme scheme;
  private final Packing packing;
  private final Tensor values;
  private final @Nullable Tensor scales;
  private final @Nullable Tensor globalScale;
  private final boolean dividedByGlobal;
  private final @Nullable Tensor zeroPoints;
  private final @Nullable Packing zeroPacking;
  private final int zeroOffset;
  private final @Nullable Tensor groupIndex;
  private final @Nullable Tensor inputScale;

  private Weight(Builder b) {
    name = b.name;
    out = b.out;
    in = b.in;
    scheme = b.scheme;
    packing = b.packing;
    values = b.values;
    scales = b.scales;
    globalScale = b.globalScale;
    dividedByGlobal = b.dividedByGlobal;
    zeroPoints = b.zeroPoints;
    zeroPacking = b.zeroPacking;
    zeroOffset = b.zeroOffset;
    groupIndex = b.groupIndex;
    inputScale = b.inputScale;
  }

  /**
   * A weight that is not quantised.
   *
   * @param values {@code [out, in]}, F32, BF16 or F16, any strides
   * @return the weight
   */
  public static Weight plain(Tensor values) {
    return plain("weight", values);
  }

  /**
   * A weight that is not quantised, with a name for messages.
   *
   * @param name its name in the checkpoint
   * @param values {@code [out, in]}, F32, BF16 or F16, any strides
   * @return the weight
   */
  public static Weight plain(String name, Tensor values) {
    if (values.dims() != 2) {
      throw new IllegalArgumentException(name + " is " + values + ", must be [out, in]");
    }
    return new Builder(
            name, QuantScheme.NONE, values.size(0), values.size(1), values, Packing.DENSE)
        .build();
  }

  /**
   * FP4 codes with E8M0 scales for 32 inputs.
   *
   * @param codes {@link DType#F4} {@code [out, in]}
   * @param scales {@link DType#F8_E8M0} {@code [out, in / 32]}
   * @return the weight
   */
  public static Weight mxfp4(Tensor codes, Tensor scales) {
    if (codes.dims() != 2) {
      throw new IllegalArgumentException("weight is " + codes + ", must be F4 [out, in]");
    }
    return builder("weight", QuantScheme.MXFP4, codes.size(0), codes.size(1), codes, Packing.DENSE)
        .scales(scales)
        .build();
  }

  /**
   * A quantised weight.
   *
   * @param name its name in the checkpoint, for messages
   * @param scheme what a code is and what scales serve
   * @param out outputs
   * @param in inputs
   * @param values the codes, in the shape that {@link Packing#shape} gives
   * @param packing how they lie in it
   * @return a new builder
   */
  public static Builder builder(
      String name, QuantScheme scheme, long out, long in, Tensor values, Packing packing) {
    return new Builder(name, scheme, out, in, values, packing);
  }

  /** {@return its name in the checkpoint, for messages} */
  public String name() {
    return name;
  }

  /** {@return outputs (rows)} */
  public long out() {
    return out;
  }

  /** {@return inputs (columns)} */
  public long in() {
    return in;
  }

  /** {@return what a code is and what scales serve} */
  public QuantScheme scheme() {
    return scheme;
  }

  /** {@return how codes lie in {@link #values}} */
  public Packing packing() {
    return packing;
  }

  /** {@return the elements, or the codes as they lie in the checkpoint} */
  public Tensor values() {
    return values;
  }

  /** {@return whether it is not quantised} */
  public boolean isPlain() {
    return scheme.isNone();
  }

  /**
   * {@return the elements of a weight that is not quantised, {@code [out, in]}}
   *
   * @throws IllegalStateException if it is quantised
   */
  public Tensor plain() {
    if (!isPlain()) {
      throw new IllegalStateException(name + " is " + scheme + ", not plain floats");
    }
    return values;
  }

  /** {@return {@code [scaleRowCount(out), scaleColumnCount(in)]}; empty for plain weights} */
  public Optional<Tensor> scales() {
    return Optional.ofNullable(scales);
  }

  /** {@return one F32 number for the whole weight; see {@link #dividedByGlobal}} */
  public Optional<Tensor> globalScale() {
    return Optional.ofNullable(globalScale);
  }

  /**
   * {@return whether scales are divided by the global scale (compressed-tensors) and not multiplied
   * (modelopt)}
   */
  public boolean dividedByGlobal() {
    return dividedByGlobal;
  }

  /**
   * {@return stored zero points, in the shape that {@link #zeroPacking} gives for {@code [out,
   * groups]}; empty where the scheme is symmetric}
   */
  public Optional<Tensor> zeroPoints() {
    return Optional.ofNullable(zeroPoints);
  }

  /** {@return how zero points lie in their tensor; {@link Packing#DENSE} without any} */
  public Packing zeroPacking() {
    return zeroPacking == null ? Packing.DENSE : zeroPacking;
  }

  /** {@return what is added to a stored zero point: 1 in GPTQ's first format, else 0} */
  public int zeroOffset() {
    return zeroOffset;
  }

  /** {@return I32 {@code [in]}, the group of each input; empty without act-order} */
  public Optional<Tensor> groupIndex() {
    return Optional.ofNullable(groupIndex);
  }

  /**
   * {@return one number, the scale of statically quantised activations, as the checkpoint stores
   * it: multiplied with a code, or, where {@link #dividedByGlobal}, its reciprocal}
   */
  public Optional<Tensor> inputScale() {
    return Optional.ofNullable(inputScale);
  }

  /** {@return the bytes of codes, scales, zero points and index together} */
  public long byteSize() {
    long bytes = 0;
    for (Tensor t :
        new @Nullable Tensor[] {values, scales, globalScale, zeroPoints, groupIndex, inputScale}) {
      bytes += t == null ? 0 : t.dtype().byteSize(t.elementCount());
    }
    return bytes;
  }

  /**
   * The same weight with other tensors: moved to other memory, or only looked at.
   *
   * @param move gets every tensor of this weight; gives one of the same dtype and shape
   * @return the weight over what it gave
   */
  public Weight withTensors(UnaryOperator<Tensor> move) {
    Builder b = new Builder(name, scheme, out, in, move.apply(values), packing);
    if (scales != null) {
      b.scales(move.apply(scales));
    }
    if (globalScale != null) {
      b.globalScale(move.apply(globalScale), dividedByGlobal);
    }
    if (zeroPoints != null) {
      b.zeroPoints(move.apply(zeroPoints), zeroPacking(), zeroOffset);
    }
    if (groupIndex != null) {
      b.groupIndex(move.apply(groupIndex));
    }
    if (inputScale != null) {
      b.inputScale(move.apply(inputScale));
    }
    return b.build();
  }

  /**
   * Some of the outputs: rows of {@code [out, in]}. A view.
   *
   * @param start the first
   * @param count how many
   * @return a weight {@code [count, in]} of the same name
   * @throws IllegalArgumentException if a scale, or a word of codes, would be cut
   * @since 0.2.0
   */
  public Weight outputs(long start, long count) {
    return new WeightSlices(this).outputs(start, count);
  }

  /**
   * Some of the inputs: columns of {@code [out, in]}. A view.
   *
   * @param start the first
   * @param count how many
   * @return a weight {@code [out, count]} of the same name
   * @throws IllegalArgumentException if a group, or a word of codes, would be cut; with act-order,
   *     where the inputs of a group lie anywhere, if it is not all of them
   * @since 0.2.0
   */
  public Weight inputs(long start, long count) {
    return new WeightSlices(this).inputs(start, count);
  }

  /**
   * A copy of all elements, no longer quantised. For small parts, and for those who cannot compute
   * with codes: it takes the room of {@code [out, in]} elements, and the common pool's threads.
   *
   * @param dtype F32, BF16 or F16; elements are rounded to it once, to nearest, ties to even
   * @return a plain weight of the same name over memory of its own, which the garbage collector
   *     frees
   * @throws IllegalStateException if a tensor of this weight is on a device
   * @throws IllegalArgumentException naming the first element found that is finite but too large
   *     for the dtype (beyond 65504 for F16)
   * @since 0.2.0
   */
  public Weight toPlain(DType dtype) {
    return plain(name, new WeightElements(this).copy(dtype));
  }

  /**
   * Like {@code up_proj [1024, 2048] int4 group 128}.
   *
   * @return name, shape and scheme
   */
  @Override
  public String toString() {
    return name
        + " ["
        + out
        + ", "
        + in
        + "] "
        + (isPlain() ? values.dtype().toString() : scheme.toString());
  }

  /** Sets what belongs to the codes; {@link #build} checks all of it. Not thread-safe. */
  public static final class Builder {
    private final String name;
    private final QuantScheme scheme;
    private final long out;
    private final long in;
    private final Tensor values;
    private final Packing packing;
    private @Nullable Tensor scales;
    private @Nullable Tensor globalScale;
    private boolean dividedByGlobal;
    private @Nullable Tensor zeroPoints;
    private @Nullable Packing zeroPacking;
    private int zeroOffset;
    private @Nullable Tensor groupIndex;
    private @Nullable Tensor inputScale;

    private Builder(
        String name, QuantScheme scheme, long out, long in, Tensor values, Packing packing) {
      this.name = Objects.requireNonNull(name, "name");
      this.scheme = Objects.requireNonNull(scheme, "scheme");
      this.out = out;
      this.in = in;
      this.values = Objects.requireNonNull(values, "values");
      this.packing = Objects.requireNonNull(packing, "packing");
    }

    /**
     * Scales.
     *
     * @param scales {@code [scaleRowCount(out), scaleColumnCount(in)]}, any strides; a single
     *     number may come in any shape
     * @return this
     */
    public Builder scales(Tensor scales) {
      this.scales = scales;
      return this;
    }

    /**
     * The global scale of NVFP4.
     *
     * @param scale one F32 number
     * @param divided true where scales are divided by it (compressed-tensors), false where they are
     *     multiplied (modelopt)
     * @return this
     */
    public Builder globalScale(Tensor scale, boolean divided) {
      this.globalScale = scale;
      this.dividedByGlobal = divided;
      return this;
    }

    /**
     * Zero points of an asymmetric scheme.
     *
     * @param zeroPoints I32 words, or dense integers {@code [out, groups]}
     * @param packing how they lie in it, as if they were a weight {@code [out, groups]}
     * @param offset what is added to a stored value
     * @return this
     */
    public Builder zeroPoints(Tensor zeroPoints, Packing packing, int offset) {
      this.zeroPoints = zeroPoints;
      this.zeroPacking = packing;
      this.zeroOffset = offset;
      return this;
    }

    /**
     * The group of each input.
     *
     * @param groupIndex I32 {@code [in]}
     * @return this
     */
    public Builder groupIndex(Tensor groupIndex) {
      this.groupIndex = groupIndex;
      return this;
    }

    /**
     * The scale of statically quantised activations.
     *
     * @param inputScale one number; its reciprocal where the global scale is a divisor
     *     (compressed-tensors' {@code input_global_scale})
     * @return this
     */
    public Builder inputScale(Tensor inputScale) {
      this.inputScale = inputScale;
      return this;
    }

    /**
     * {@return the weight}
     *
     * @throws IllegalArgumentException naming the tensor that does not fit, and what would
     */
    public Weight build() {
      WeightChecks checks = new WeightChecks(name, scheme, out, in);
      checks.requireValues(values, packing);
      scales = checks.requireScales(scales);
      checks.requireGlobalScale(globalScale);
      checks.requireZeroPoints(zeroPoints, zeroPacking, packing);
      checks.requireGroupIndex(groupIndex);
      checks.requireScalar("input scale", inputScale);
      return new Weight(this);
    }
  }
}
