package io.moe4j.reference;

import io.moe4j.api.config.ActivationQuant;
import io.moe4j.api.config.QuantScheme.Format;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.Weight;

/**
 * What a linear map sees of its input where a checkpoint means activations to be quantised: codes
 * times scale, in float64. A scale is rounded to float32 first, as engines keep it; a value divided
 * by it is rounded to the nearest code, ties to the even one, and saturates. Stateless.
 *
 * @since 0.2.0
 */
public final class QuantizeActivation {
  /** The smallest scale of FP8 per token: 1 / (448 * 512). */
  private static final double MIN_TOKEN_SCALE = 1.0 / (448 * 512);

  /** What NVFP4 has for the scale of a group of zeros. */
  private static final double ZERO_GROUP_SCALE = 0.125;

  private QuantizeActivation() {}

  /**
   * {@return the input as the map sees it, {@code [in]}; {@code x} itself where the weight's scheme
   * leaves activations alone}
   *
   * @param weight the map; host memory
   * @param x {@code [in]}, not changed
   * @throws IllegalArgumentException if the scheme needs a stored scale and the weight has none
   */
  public static double[] apply(Weight weight, double[] x) {
    ActivationQuant rule = weight.scheme().activations();
    Format format = rule.format();
    double[] y = new double[x.length];
    switch (rule.scaling()) {
      case NONE -> {
        return x;
      }
      case DYNAMIC_PER_TOKEN -> {
        double scale = (float) (amax(x, 0, x.length) / largest(format));
        round(
            format,
            x,
            y,
            0,
            x.length,
            format == Format.FP8 ? Math.max(scale, MIN_TOKEN_SCALE) : scale);
      }
      case DYNAMIC_PER_GROUP, DYNAMIC_PER_GROUP_E8M0 -> {
        boolean powers = rule.scaling() == ActivationQuant.Scaling.DYNAMIC_PER_GROUP_E8M0;
        for (int from = 0; from < x.length; from += rule.groupSize()) {
          int to = Math.min(x.length, from + rule.groupSize());
          double scale = (float) (amax(x, from, to) / largest(format));
          round(format, x, y, from, to, powers ? powerAtLeast(scale) : scale);
        }
      }
      case STATIC -> round(format, x, y, 0, x.length, stored(weight));
      case STATIC_AND_PER_GROUP -> {
        double global = weight.dividedByGlobal() ? stored(weight) : 1 / stored(weight);
        for (int from = 0; from < x.length; from += rule.groupSize()) {
          int to = Math.min(x.length, from + rule.groupSize());
          double wanted = (float) (amax(x, from, to) / largest(format) * global);
          double scale = nearest(Format.FP8, wanted);
          round(format, x, y, from, to, (scale == 0 ? ZERO_GROUP_SCALE : scale) / global);
        }
      }
      default -> throw new IllegalArgumentException("not computed here: " + rule);
    }
    return y;
  }

  /**
   * Checks that a weight has the scale that its activations need.
   *
   * @param weight any
   * @throws IllegalArgumentException if it has not
   */
  public static void requireScale(Weight weight) {
    switch (weight.scheme().activations().scaling()) {
      case STATIC, STATIC_AND_PER_GROUP -> stored(weight);
      default -> {
        // The scale is the input's own.
      }
    }
  }

  private static double stored(Weight weight) {
    Tensor scale =
        weight
            .inputScale()
            .orElseThrow(() ->
                new IllegalArgumentException(
                    weight.name()
                        + " has no input scale, which "
                        + weight.scheme()
                        + " needs for quantised activations"));
    return scale.toDoubles()[0];
  }

  private static double amax(double[] x, int from, int to) {
    double amax = 0;
    for (int i = from; i < to; i++) {
      amax = Math.max(amax, Math.abs(x[i]));
    }
    return amax;
  }

  private static double powerAtLeast(double scale) {
    double power = Math.scalb(1.0, Math.getExponent(scale));
    return scale == 0 || power == scale ? scale : 2 * power;
  }

  private static void round(Format format, double[] x, double[] y, int from, int to, double scale) {
    for (int i = from; i < to; i++) {
      y[i] = scale == 0 ? 0 : nearest(format, x[i] / scale) * scale;
    }
  }

  /** The code that the largest magnitude of a row becomes. */
  private static double largest(Format format) {
    return switch (format) {
      case INT8 -> 127;
      case INT4 -> 7;
      case FP8 -> 448;
      case FP4 -> 6;
      default -> throw new IllegalArgumentException("activations in " + format);
    };
  }

  private static double nearest(Format format, double v) {
    return switch (format) {
      case INT8 -> Math.clamp(Math.rint(v), -128, 127);
      case INT4 -> Math.clamp(Math.rint(v), -8, 7);
      case FP8 -> nearestFloat(v, -6, 3, 448);
      case FP4 -> nearestFloat(v, 0, 1, 6);
      default -> throw new IllegalArgumentException("activations in " + format);
    };
  }

  /** Below the smallest exponent steps stay what they are there: the subnormal numbers. */
  private static double nearestFloat(double v, int minExponent, int mantissaBits, double max) {
    if (v == 0 || Double.isNaN(v)) {
      return v;
    }
    int exponent = Math.max(Math.getExponent(v), minExponent);
    double step = Math.scalb(1.0, exponent - mantissaBits);
    return Math.copySign(Math.min(max, Math.rint(Math.abs(v) / step) * step), v);
  }
}
