package io.moe4j.cli.bench;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;

/**
 * What the experts of a layer under test are stored as; the rest of the layer is in {@link #dtype}.
 */
@SuppressWarnings("ImmutableEnumChecker") // a QuantScheme is a value
public enum BenchWeights {
  /** Plain. */
  BF16(DType.BF16, QuantScheme.NONE),
  /** Plain. */
  F16(DType.F16, QuantScheme.NONE),
  /** Plain. */
  F32(DType.F32, QuantScheme.NONE),
  /** 4-bit integers, a scale for 128 inputs. */
  INT4(DType.BF16, QuantScheme.int4(128)),
  /** 4-bit integers, a scale for 32 inputs. */
  INT4_G32(DType.BF16, QuantScheme.int4(32)),
  /** 4-bit integers, a scale and a zero point for 128 inputs. */
  INT4_ZERO(DType.BF16, QuantScheme.int4(128).toBuilder().symmetric(false).build()),
  /** 8-bit integers, a scale for 128 inputs. */
  INT8(DType.BF16, QuantScheme.int8(128)),
  /** 8-bit floats, a scale for 128 x 128. */
  FP8(DType.BF16, QuantScheme.FP8_BLOCK),
  /** 8-bit floats, a scale for a matrix, activations by scales of the checkpoint. */
  FP8_TENSOR(
      DType.BF16,
      QuantScheme.builder(QuantScheme.Format.FP8)
          .perTensor()
          .activations(ActivationQuant.FP8_STATIC)
          .build()),
  /** OCP MXFP4. */
  MXFP4(DType.BF16, QuantScheme.MXFP4),
  /** NVFP4. */
  NVFP4(DType.BF16, QuantScheme.NVFP4);

  private final DType dtype;
  private final QuantScheme scheme;

  BenchWeights(DType dtype, QuantScheme scheme) {
    this.dtype = dtype;
    this.scheme = scheme;
  }

  /** {@return as {@code --dtype} takes it and tables have it} */
  public String text() {
    return name().toLowerCase(Locale.ROOT).replace('_', '-');
  }

  /** {@return all texts} */
  public static List<String> texts() {
    return Arrays.stream(values()).map(BenchWeights::text).toList();
  }

  /**
   * {@return what a text means; empty if nothing}
   *
   * @param text like {@code int4}
   */
  public static Optional<BenchWeights> of(String text) {
    return Arrays.stream(values())
        .filter(w -> w.text().equals(text.toLowerCase(Locale.ROOT)))
        .findFirst();
  }

  /**
   * {@return what a scheme is stored as here; empty if there is none}
   *
   * @param scheme not {@link QuantScheme#NONE}
   */
  static Optional<BenchWeights> of(QuantScheme scheme) {
    return Arrays.stream(values()).filter(w -> w.scheme.equals(scheme)).findFirst();
  }

  /** {@return whether activations are quantised as well: kernels of GPU backends only} */
  public boolean quantizedActivations() {
    return !scheme.activations().equals(ActivationQuant.NONE);
  }

  /** {@return dtype of hidden states, router and adapters, and of plain experts} */
  public DType dtype() {
    return dtype;
  }

  /** {@return how experts are quantised} */
  public QuantScheme scheme() {
    return scheme;
  }

  /** {@return bytes of all experts' weights, scales and zero points included} */
  long bytes(BenchShape shape) {
    return shape.numExperts()
        * (2 * bytes(shape.intermediateSize(), shape.hiddenSize())
            + bytes(shape.hiddenSize(), shape.intermediateSize()));
  }

  private long bytes(long out, long in) {
    if (scheme.isNone()) {
      return dtype.byteSize(out * in);
    }
    long groups = scheme.scaleRowCount(out) * scheme.scaleColumnCount(in);
    long zeros = scheme.symmetric() ? 0 : groups * scheme.bits() / 8;
    return out * in * scheme.bits() / 8 + groups * (scales().bits() / 8) + zeros;
  }

  /** {@return dtype of scales} */
  DType scales() {
    return switch (scheme.scaleFormat()) {
      case E8M0 -> DType.F8_E8M0;
      case E4M3 -> DType.F8_E4M3;
      case FLOAT -> scheme.format() == QuantScheme.Format.FP8 ? DType.F32 : DType.BF16;
    };
  }
}
