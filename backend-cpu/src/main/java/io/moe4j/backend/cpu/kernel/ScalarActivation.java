package io.moe4j.backend.cpu.kernel;

import io.moe4j.api.config.Activation;

/** The activation functions on one element, in double. */
final class ScalarActivation {
  private static final double SQRT_2_OVER_PI = 0.7978845608028654;

  private ScalarActivation() {}

  static double apply(Activation a, double g, double u) {
    double limit = a.limit();
    return switch (a.kind()) {
      case SILU -> silu(Math.min(g, limit)) * clip(u, limit);
      case GELU -> gelu(g) * u;
      case GELU_TANH -> geluTanh(g) * u;
      case SWIGLUOAI -> {
        double gc = Math.min(g, limit);
        yield gc / (1 + Math.exp(-a.alpha() * gc)) * (clip(u, limit) + a.beta());
      }
      case SWIGLU_STEP -> Math.min(silu(g), limit) * clip(u, limit);
      case SILU_NO_MUL -> silu(u);
      case GELU_NO_MUL -> gelu(u);
      case GELU_TANH_NO_MUL -> geluTanh(u);
      case RELU2_NO_MUL -> {
        double r = Math.max(u, 0);
        yield r * r;
      }
    };
  }

  private static double clip(double v, double limit) {
    return Math.max(-limit, Math.min(v, limit));
  }

  private static double silu(double v) {
    return v / (1 + Math.exp(-v));
  }

  private static double geluTanh(double v) {
    return 0.5 * v * (1 + Math.tanh(SQRT_2_OVER_PI * (v + 0.044715 * v * v * v)));
  }

  private static double gelu(double v) {
    return 0.5 * v * erfc(-v * Math.sqrt(0.5));
  }

  /**
   * Complementary error function, relative error below 1.2e-7 everywhere (Chebyshev fit, Numerical
   * Recipes 2nd ed., section 6.2).
   */
  static double erfc(double x) {
    double z = Math.abs(x);
    double t = 1 / (1 + 0.5 * z);
    double poly = 0.17087277;
    poly = -0.82215223 + t * poly;
    poly = 1.48851587 + t * poly;
    poly = -1.13520398 + t * poly;
    poly = 0.27886807 + t * poly;
    poly = -0.18628806 + t * poly;
    poly = 0.09678418 + t * poly;
    poly = 0.37409196 + t * poly;
    poly = 1.00002368 + t * poly;
    poly = -1.26551223 + t * poly;
    double r = t * Math.exp(-z * z + poly);
    return x >= 0 ? r : 2 - r;
  }
}
