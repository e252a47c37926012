package io.moe4j.cli.bench;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.weights.Packing;
import java.util.Arrays;
import java.util.Locale;
import java.util.Optional;

/** What the experts' weights of a measured layer are; activations and adapters are bf16. */
@SuppressWarnings("ImmutableEnumChecker") // QuantScheme is immutable, if not annotated as such
public enum DeviceWeightKind {
  /** Plain. */
  BF16(QuantScheme.NONE, DType.BF16, Packing.DENSE, DType.BF16, 1),
  /** Symmetric, an F16 scale for 128 inputs, packed along the inputs. */
  INT4(QuantScheme.int4(128), DType.I32, Packing.WORDS_ALONG_IN, DType.F16, 4.6),
  /** Symmetric, an F16 scale for 128 inputs, packed along the inputs. */
  INT8(QuantScheme.int8(128), DType.I32, Packing.WORDS_ALONG_IN, DType.F16, 74),
  /** E4M3, an F32 scale for 128 x 128 weights. */
  FP8(QuantScheme.FP8_BLOCK, DType.F8_E4M3, Packing.DENSE, DType.F32, 1),
  /** E2M1, an E8M0 scale for 32 inputs. */
  MXFP4(QuantScheme.MXFP4, DType.F4, Packing.DENSE, DType.F8_E8M0, 3);

  private final QuantScheme scheme;
  private final DType codes;
  private final Packing packing;
  private final DType scales;
  private final double deviation;

  DeviceWeightKind(
      QuantScheme scheme, DType codes, Packing packing, DType scales, double deviation) {
    this.scheme = scheme;
    this.codes = codes;
    this.packing = packing;
    this.scales = scales;
    this.deviation = deviation;
  }

  /**
   * {@return the kind of a name like {@code int4}; empty if it is none}
   *
   * @param text as {@link #text} gives it, in any case
   */
  public static Optional<DeviceWeightKind> parse(String text) {
    return Arrays.stream(values()).filter(k -> k.name().equalsIgnoreCase(text)).findFirst();
  }

  /** {@return the name in lower case} */
  public String text() {
    return name().toLowerCase(Locale.ROOT);
  }

  QuantScheme scheme() {
    return scheme;
  }

  DType codes() {
    return codes;
  }

  Packing packing() {
    return packing;
  }

  DType scales() {
    return scales;
  }

  /** {@return the root mean square of a code less its zero point, about} */
  double deviation() {
    return deviation;
  }

  /** {@return bytes that an expert's three matrices take in a checkpoint} */
  double expertBytes(BenchShape shape) {
    double h = shape.hiddenSize();
    double i = shape.intermediateSize();
    if (scheme.isNone()) {
      return 6 * h * i;
    }
    double perScale = (double) Math.max(1, scheme.scaleRows()) * scheme.scaleColumns();
    return 3 * h * i * (scheme.bits() / 8.0 + scales.byteSize(1) / perScale);
  }
}
