package io.moe4j.checkpoint;

import io.moe4j.api.config.GateUpLayout;
import java.util.Optional;

/** One way in which a block's routed experts are stored. Names are relative to the block. */
public sealed interface ExpertForm {
  /** {@return the name of one of its tensors, with {@code {E}} for the expert, for messages} */
  default String example() {
    return switch (this) {
      case PerExpert p -> p.up();
      case Stacked s -> s.w13();
      case StackedApart a -> a.up();
      case Mxfp4Stacked m -> m.w13() + Mxfp4Stacked.BLOCKS;
    };
  }

  /** Which way round a stacked matrix is stored. */
  enum Orientation {
    /** {@code [E, out, in]}: rows are outputs. */
    OUT_IN,
    /** {@code [E, in, out]}: columns are outputs. */
    IN_OUT,
    /** One of the two, as the tensors' shapes say (qwen3_vl_moe has been saved both ways). */
    BY_SHAPE
  }

  /**
   * A tensor per expert and projection, {@code [out, in]}.
   *
   * @param gate like {@code experts.{E}.gate_proj.weight}; empty where the activation is not gated
   * @param up like {@code experts.{E}.up_proj.weight}
   * @param down like {@code experts.{E}.down_proj.weight}
   */
  record PerExpert(Optional<String> gate, String up, String down) implements ExpertForm {
    /** Placeholder of the expert index. */
    static final String EXPERT = "{E}";

    /**
     * Checks the components.
     *
     * @param gate template or empty
     * @param up template
     * @param down template
     */
    public PerExpert {
      gate.ifPresent(PerExpert::requireTemplate);
      requireTemplate(up);
      requireTemplate(down);
    }

    private static void requireTemplate(String name) {
      if (name.indexOf(EXPERT) < 0 || name.indexOf(EXPERT) != name.lastIndexOf(EXPERT)) {
        throw new IllegalArgumentException("'" + name + "' must contain {E} once");
      }
    }

    /** The expert index in a name that fits a template, as it stands there. */
    static Optional<String> index(String template, String name) {
      int at = template.indexOf(EXPERT);
      int after = template.length() - at - EXPERT.length();
      int end = name.length() - after;
      boolean fits =
          end > at
              && name.startsWith(template.substring(0, at))
              && name.endsWith(template.substring(at + EXPERT.length()));
      for (int i = at; i < end && fits; i++) {
        fits = name.charAt(i) >= '0' && name.charAt(i) <= '9';
      }
      return fits ? Optional.of(name.substring(at, end)) : Optional.empty();
    }

    /** The same of any tensor that a quantised module has in place of its {@code .weight}. */
    static Optional<String> indexOfPart(String template, String name) {
      int dot = name.lastIndexOf('.');
      return template.endsWith(".weight") && QuantisedNames.isPart(name.substring(dot + 1))
          ? index(template, name.substring(0, dot + 1) + "weight")
          : index(template, name);
    }

    static String name(String template, int expert) {
      return template.replace(EXPERT, Integer.toString(expert));
    }
  }

  /**
   * All experts in one tensor a projection.
   *
   * @param w13 gate and up (up alone where the activation is not gated), like {@code
   *     experts.gate_up_proj}
   * @param w2 down, like {@code experts.down_proj}
   * @param b13 bias {@code [E, 2I]} in the same order, or empty
   * @param b2 bias {@code [E, H]}, or empty
   * @param orientation of {@code w13} and {@code w2}
   * @param gateUp how gate and up share the {@code 2I}
   */
  record Stacked(
      String w13,
      String w2,
      Optional<String> b13,
      Optional<String> b2,
      Orientation orientation,
      GateUpLayout gateUp)
      implements ExpertForm {}

  /**
   * All experts in one tensor a projection, gate and up apart.
   *
   * @param gate like {@code gate_proj.weight}, {@code [E, I, H]}
   * @param up like {@code up_proj.weight}, {@code [E, I, H]}
   * @param down like {@code down_proj.weight}, {@code [E, H, I]}
   */
  record StackedApart(String gate, String up, String down) implements ExpertForm {}

  /**
   * All experts in one tensor a projection, in MXFP4 as gpt-oss is published: {@code NAME_blocks}
   * {@code U8 [E, out, in / 32, 16]}, two 4-bit floats to a byte, the low half first, and {@code
   * NAME_scales} {@code U8 [E, out, in / 32]}, exponents. Rows are outputs whatever the orientation
   * of the family's plain tensors.
   *
   * @param w13 gate and up without the suffix, like {@code experts.gate_up_proj}
   * @param w2 down without the suffix, like {@code experts.down_proj}
   * @param b13 bias {@code [E, 2I]} in the same order, or empty
   * @param b2 bias {@code [E, H]}, or empty
   * @param gateUp how gate and up share the {@code 2I}
   */
  record Mxfp4Stacked(
      String w13, String w2, Optional<String> b13, Optional<String> b2, GateUpLayout gateUp)
      implements ExpertForm {
    static final String BLOCKS = "_blocks";
    static final String SCALES = "_scales";

    boolean names(String name) {
      return name.equals(w13 + BLOCKS)
          || name.equals(w13 + SCALES)
          || name.equals(w2 + BLOCKS)
          || name.equals(w2 + SCALES);
    }
  }
}
