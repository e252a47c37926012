package io.moe4j.checkpoint;

import java.util.Set;

/** Scales and ranks by name, from adapter_config.json. */
final class AdapterScales {
  private final AdapterConfig config;
  private final PatternTable ranks;
  private final PatternTable alphas;
  private final Set<String> notes;

  AdapterScales(AdapterConfig config, String where, Set<String> notes) {
    this.config = config;
    this.ranks = new PatternTable(where + ": rank_pattern", config.rankPattern());
    this.alphas = new PatternTable(where + ": alpha_pattern", config.alphaPattern());
    this.notes = notes;
  }

  /** The rank that the config gives a parameter. */
  int configRank(String parameter) {
    return (int) ranks.find(parameter).orElse(config.rank());
  }

  /**
   * What is folded into B.
   *
   * @param parameter full name of the parameter, as patterns see it
   * @param rank the rank of the factors; where the config says another, theirs counts
   */
  double scale(String parameter, int rank) throws AdapterProblem {
    double alpha = alphas.find(parameter).orElse(config.alpha());
    if (configRank(parameter) != rank) {
      requireRank(parameter, rank);
      requireOneAlpha(parameter, rank);
      notes.add(
          "factors of rank "
              + rank
              + " where the config says "
              + configRank(parameter)
              + ", first for '"
              + shown(parameter)
              + "': the scale is that of the factors' rank");
    }
    noteDisputed(alphas, "alpha_pattern", parameter);
    noteDisputed(ranks, "rank_pattern", parameter);
    double scale = config.rslora() ? alpha / Math.sqrt(rank) : alpha / rank;
    if (!Double.isFinite(scale)) {
      throw AdapterProblem.damage(
          "its scale alpha " + alpha + " / rank " + rank + " is not finite");
    }
    if (scale == 0) {
      notes.add(
          (config.form() == AdapterConfig.Form.MLX ? "scale" : "alpha")
              + " is 0, first for '"
              + shown(parameter)
              + "': such factors change nothing");
    }
    return scale;
  }

  /** mlx-lm's scale is not divided by the rank, and says nothing of factors of another one. */
  private void requireRank(String parameter, int rank) throws AdapterProblem {
    if (config.form() == AdapterConfig.Form.MLX) {
      throw AdapterProblem.damage(
          "its factors have rank "
              + rank
              + "; lora_parameters say "
              + configRank(parameter)
              + ", and their scale is of that rank");
    }
  }

  /**
   * Where the factors' rank is not that of the first entry of {@code rank_pattern} that fits, the
   * entries had another order in training: PEFT sorts them when it saves, and cannot load such a
   * file. Then the first alpha need not be the one that was trained with either.
   */
  private void requireOneAlpha(String parameter, int rank) throws AdapterProblem {
    if (ranks.isDisputed(parameter) && alphas.isDisputed(parameter)) {
      throw AdapterProblem.damage(
          "several entries of rank_pattern and of alpha_pattern fit '"
              + shown(parameter)
              + "' and differ; its factors have rank "
              + rank
              + ", not the "
              + configRank(parameter)
              + " of the first entry, so the entries had another order in training and the alpha"
              + " is not known: leave only the entry that it was trained with in rank_pattern and"
              + " alpha_pattern of adapter_config.json");
    }
  }

  /** PEFT trains with the first entry that fits, and sorts them when it saves. */
  private void noteDisputed(PatternTable patterns, String key, String parameter) {
    if (patterns.isDisputed(parameter)) {
      notes.add(
          "several entries of "
              + key
              + " fit, first for '"
              + shown(parameter)
              + "', and differ: the first in the file counts, as in PEFT, which may have trained"
              + " with another, as it sorts them when it saves");
    }
  }

  private static String shown(String parameter) {
    return StrictJson.shorten(parameter.replaceAll("\\.\\d+\\.", ".N."));
  }

  static String text(double scale) {
    return scale == Math.rint(scale) && Math.abs(scale) < 1e9
        ? Long.toString((long) scale)
        : Float.toString((float) scale);
  }
}
