package io.moe4j.checkpoint;

import io.moe4j.checkpoint.AdapterPolicy.FusedOrder;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Optional;

/**
 * What {@code adapter_config.json} says about the order in which the experts are folded into the
 * 2-D factors of a fused parameter. PEFT says nothing and has one order: A's rows by expert, B's
 * columns by rank. Unsloth computed with B's columns by expert until September 2026, and has marked
 * its files since ({@code lora_B_layout}, {@code unsloth_fused_expert_lora}). Megatron-Bridge
 * writes B's columns by expert and marks nothing.
 *
 * @param a the order of A's rows, as the file spells it
 * @param b the order of B's columns, as the file spells it
 * @param byParameter what the file says of single parameters
 * @param writer whose order it is where the file does not say it
 */
public record FusedLayout(
    Optional<String> a, Optional<String> b, Map<String, Parameter> byParameter, Writer writer) {
  /** Whose program wrote a file, as far as that decides the order of B's columns. */
  public enum Writer {
    /** PEFT, or a program that follows it: by rank. */
    PEFT,
    /** Unsloth, which changed its order. */
    UNSLOTH,
    /** The config does not tell; Megatron-Bridge folds B by expert and looks like this. */
    UNKNOWN
  }

  /** Nothing is said: PEFT's order. */
  public static final FusedLayout UNSTATED =
      new FusedLayout(Optional.empty(), Optional.empty(), Map.of(), Writer.PEFT);

  /** Where a file says "it depends", its parameters must say. */
  private static final String MIXED = "mixed";

  /**
   * What a file says of one parameter.
   *
   * @param a the order of A's rows
   * @param b the order of B's columns
   * @param numExperts the number of experts that were folded, or empty
   */
  public record Parameter(Optional<String> a, Optional<String> b, Optional<Integer> numExperts) {}

  /** Copies the map. */
  public FusedLayout {
    byParameter = Collections.unmodifiableMap(new LinkedHashMap<>(byParameter));
  }

  /** The orders of one parameter's factors; an empty one is up to the caller, or PEFT's. */
  record Orders(Optional<FusedOrder> a, Optional<FusedOrder> b) {}

  /**
   * The orders of a parameter.
   *
   * @param parameter its name in its module, like {@code gate_up_proj}
   * @param numExperts the model's
   */
  Orders orders(String parameter, int numExperts) throws AdapterProblem {
    Optional<Parameter> own =
        byParameter.entrySet().stream()
            .filter(e -> e.getKey().equals(parameter) || e.getKey().endsWith("." + parameter))
            .map(Map.Entry::getValue)
            .findFirst();
    Optional<Integer> experts = own.flatMap(Parameter::numExperts);
    if (experts.isPresent() && experts.get() != numExperts) {
      throw AdapterProblem.damage(
          "the config says that %s folds %d experts, the model has %d"
              .formatted(parameter, experts.get(), numExperts));
    }
    return new Orders(
        order("lora_A_layout", parameter, own.flatMap(Parameter::a), a),
        order("lora_B_layout", parameter, own.flatMap(Parameter::b), b));
  }

  private static Optional<FusedOrder> order(
      String key, String parameter, Optional<String> own, Optional<String> all)
      throws AdapterProblem {
    boolean mixed = all.map(MIXED::equals).orElse(false);
    if (own.isPresent() && all.isPresent() && !mixed && !own.equals(all)) {
      throw AdapterProblem.damage(
          "the config gives two values of %s for %s, '%s' and '%s'"
              .formatted(
                  key, parameter, StrictJson.shorten(own.get()), StrictJson.shorten(all.get())));
    }
    Optional<String> said = own.or(() -> all);
    if (said.isEmpty()) {
      return Optional.empty();
    }
    return Optional.of(
        switch (said.get()) {
          case "rank_major" -> FusedOrder.RANK_MAJOR;
          case "grouped_by_expert" -> FusedOrder.GROUPED_BY_EXPERT;
          default ->
              throw AdapterProblem.damage(
                  "%s of %s is '%s'; accepted are rank_major and grouped_by_expert"
                      .formatted(key, parameter, StrictJson.shorten(said.get())));
        });
  }
}
