package io.moe4j.backend.cpu;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.Weight;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import org.jspecify.annotations.Nullable;

/** Random tensors and a plain float64 computation to hold the kernels against. */
final class Samples {
  private Samples() {}

  static Tensor random(Random rnd, Arena arena, DType dtype, double scale, long... shape) {
    long n = 1;
    for (long s : shape) {
      n *= s;
    }
    Tensor t = Tensor.of(dtype, arena.allocate(Math.max(1, dtype.byteSize(n))), shape);
    Tensor flat = t.reshape(n);
    for (long i = 0; i < n; i++) {
      flat.set(rnd.nextGaussian() * scale, i);
    }
    return t;
  }

  static Tensor ints(Arena arena, int[] values, long... shape) {
    Tensor t = Tensor.of(DType.I32, arena.allocate(Math.max(1, 4L * values.length)), shape);
    Tensor flat = t.reshape(values.length);
    for (int i = 0; i < values.length; i++) {
      flat.set(values[i], i);
    }
    return t;
  }

  static ExpertWeights experts(Random rnd, Arena arena, MoeConfig c) {
    List<ExpertWeights.Expert> list = new ArrayList<>();
    int h = c.expertHiddenSize();
    int i = c.intermediateSize();
    DType d = c.weightDtype();
    boolean gated = c.activation().isGated();
    for (int e = 0; e < c.numLocalExperts(); e++) {
      list.add(
          ExpertWeights.Expert.plain(
                  gated ? random(rnd, arena, d, 1 / Math.sqrt(h), i, h) : null,
                  random(rnd, arena, d, 1 / Math.sqrt(h), i, h),
                  random(rnd, arena, d, 1 / Math.sqrt(i), h, i))
              .withBias(
                  c.expertBias() && gated ? random(rnd, arena, d, 0.3, i) : null,
                  c.expertBias() ? random(rnd, arena, d, 0.3, i) : null,
                  c.expertBias() ? random(rnd, arena, d, 0.3, h) : null));
    }
    return new ExpertWeights(list);
  }

  /** Slots by index; null for an empty one. */
  record Context(List<@Nullable LoraLayer> slots, Tensor tokenLoraMapping)
      implements MoeLoraContext {
    @Override
    public int maxLoras() {
      return slots.size();
    }

    @Override
    public boolean hasLora() {
      return true;
    }

    @Override
    public @Nullable LoraLayer slot(int slot) {
      return slots.get(slot);
    }

    @Override
    public PunicaWrapper punicaWrapper() {
      throw new AssertionError("the fused path must not need it");
    }

    @Override
    public MoeLoraContext withTokenLoraMapping(Tensor mapping) {
      return new Context(slots, mapping);
    }
  }

  /** Tensors of one problem in double, each read once: their elements are slow to get. */
  static final class Doubles {
    private record Factor(LoraFactors factors, int expert, boolean second) {}

    private final IdentityHashMap<Tensor, double[]> tensors = new IdentityHashMap<>();
    private final Map<Factor, double[]> factors = new HashMap<>();

    double[] of(Tensor t) {
      return tensors.computeIfAbsent(t, Tensor::toDoubles);
    }

    double[] of(LoraFactors f, int expert, boolean second) {
      return factors.computeIfAbsent(
          new Factor(f, expert, second), _ -> (second ? f.b(expert) : f.a(expert)).toDoubles());
    }
  }

  /** y = W x (+ B A x) in double; W {@code [out, in]}. */
  static double[] linear(
      Doubles d, Tensor w, @Nullable Tensor bias, @Nullable LoraFactors f, int expert, double[] x) {
    double[] y = product(d.of(w), x, (int) w.size(0));
    double[] deltas =
        f == null
            ? new double[y.length]
            : product(
                d.of(f, expert, true), product(d.of(f, expert, false), x, f.rank()), y.length);
    for (int o = 0; o < y.length; o++) {
      y[o] += deltas[o] + (bias == null ? 0 : bias.get(o));
    }
    return y;
  }

  private static double[] product(double[] matrix, double[] x, int out) {
    double[] y = new double[out];
    for (int o = 0; o < out; o++) {
      double s = 0;
      for (int i = 0; i < x.length; i++) {
        s += matrix[o * x.length + i] * x[i];
      }
      y[o] = s;
    }
    return y;
  }

  /** One expert on one token, in double. */
  static double[] expert(
      Doubles d,
      Activation act,
      ExpertWeights.Expert x,
      @Nullable LoraLayer lora,
      int e,
      double[] in) {
    LoraFactors fg = lora == null ? null : lora.get(LoraTarget.GATE);
    LoraFactors fu = lora == null ? null : lora.get(LoraTarget.UP);
    LoraFactors fd = lora == null ? null : lora.get(LoraTarget.DOWN);
    Weight gate = x.gate();
    double[] g = gate == null ? new double[0] : linear(d, gate.plain(), x.gateBias(), fg, e, in);
    double[] u = linear(d, x.up().plain(), x.upBias(), fu, e, in);
    double[] a = new double[u.length];
    for (int i = 0; i < a.length; i++) {
      a[i] = activation(act, gate == null ? 0 : g[i], u[i]);
    }
    return linear(d, x.down().plain(), x.downBias(), fd, e, a);
  }

  /**
   * Written from the table in {@link Activation}, with the JDK's functions and a series for erf.
   */
  static double activation(Activation a, double g, double u) {
    double lim = a.limit();
    double uc = Math.max(-lim, Math.min(lim, u));
    double gc = Math.min(g, lim);
    return switch (a.kind()) {
      case SILU -> gc / (1 + Math.exp(-gc)) * uc;
      case GELU -> g * 0.5 * (1 + erf(g / Math.sqrt(2))) * u;
      case GELU_TANH -> geluTanh(g) * u;
      case SWIGLUOAI -> gc / (1 + Math.exp(-a.alpha() * gc)) * (uc + a.beta());
      case SWIGLU_STEP -> Math.min(g / (1 + Math.exp(-g)), lim) * uc;
      case SILU_NO_MUL -> u / (1 + Math.exp(-u));
      case GELU_NO_MUL -> u * 0.5 * (1 + erf(u / Math.sqrt(2)));
      case GELU_TANH_NO_MUL -> geluTanh(u);
      case RELU2_NO_MUL -> u > 0 ? u * u : 0;
    };
  }

  private static double geluTanh(double v) {
    return 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v * v * v)));
  }

  /** Maclaurin series; exact to double for the arguments of these tests. */
  private static double erf(double x) {
    if (Math.abs(x) > 5) {
      return Math.signum(x);
    }
    double term = x;
    double sum = x;
    for (int n = 1; n < 200; n++) {
      term *= -x * x / n;
      sum += term / (2 * n + 1);
    }
    return 2 / Math.sqrt(Math.PI) * sum;
  }

  static double relativeL2(double[] expected, double[] actual) {
    double d = 0;
    double s = 0;
    for (int i = 0; i < expected.length; i++) {
      d += (expected[i] - actual[i]) * (expected[i] - actual[i]);
      s += expected[i] * expected[i];
    }
    return Math.sqrt(d) / Math.max(Math.sqrt(s), 1e-30);
  }
}
