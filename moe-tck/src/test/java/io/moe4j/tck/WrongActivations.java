package io.moe4j.tck;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.Activation.Kind;
import io.moe4j.api.config.MoeConfig;
import java.util.EnumMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.UnaryOperator;

/** Mistakes in the function between the products: one for each kind and each parameter. */
final class WrongActivations {
  private WrongActivations() {}

  /** A backend that computes another activation. */
  static final class Mistaken extends Altered {
    private final UnaryOperator<Activation> mistake;

    Mistaken(UnaryOperator<Activation> mistake) {
      this.mistake = mistake;
    }

    @Override
    MoeConfig config(MoeConfig config) {
      return config.toBuilder().activation(mistake.apply(config.activation())).build();
    }
  }

  /** What a kind is easily taken for. */
  static Map<Kind, Kind> kinds() {
    Map<Kind, Kind> taken = new EnumMap<>(Kind.class);
    taken.put(Kind.SILU, Kind.SWIGLU_STEP);
    taken.put(Kind.GELU, Kind.GELU_TANH);
    taken.put(Kind.GELU_TANH, Kind.GELU);
    taken.put(Kind.SWIGLUOAI, Kind.SILU);
    taken.put(Kind.SWIGLU_STEP, Kind.SILU);
    taken.put(Kind.SILU_NO_MUL, Kind.GELU_TANH_NO_MUL);
    taken.put(Kind.GELU_NO_MUL, Kind.GELU_TANH_NO_MUL);
    taken.put(Kind.GELU_TANH_NO_MUL, Kind.GELU_NO_MUL);
    taken.put(Kind.RELU2_NO_MUL, Kind.SILU_NO_MUL);
    return taken;
  }

  /** By component of {@link Activation}. */
  static Map<String, UnaryOperator<Activation>> parameters() {
    Map<String, UnaryOperator<Activation>> mistakes = new LinkedHashMap<>();
    mistakes.put("kind", a -> Activation.plain(kinds().getOrDefault(a.kind(), a.kind())));
    mistakes.put("alpha", a -> new Activation(a.kind(), 1, a.beta(), a.limit()));
    mistakes.put("beta", a -> new Activation(a.kind(), a.alpha(), 0, a.limit()));
    mistakes.put("limit", a -> a.withLimit(Float.POSITIVE_INFINITY));
    return mistakes;
  }
}
