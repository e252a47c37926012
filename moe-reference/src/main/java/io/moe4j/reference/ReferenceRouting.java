package io.moe4j.reference;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import java.util.Arrays;
import org.jspecify.annotations.Nullable;

/**
 * From one token's logits to its experts, step by step as {@link RoutingConfig} numbers them.
 * Weights are float64. The choice is made on scores rounded to f32, because that is where the rule
 * is defined: two sigmoids that saturate to the same f32 tie, and the smaller expert id wins. A NaN
 * score is chosen last.
 */
public final class ReferenceRouting {
  private ReferenceRouting() {}

  /**
   * Routes one token.
   *
   * @param config the rule
   * @param logits {@code [E]}
   * @param correctionBias {@code [E]}, or null where the config has none
   * @param ids {@code [K]}, overwritten with the experts in the order chosen
   * @param weights {@code [K]}, overwritten
   */
  public static void route(
      RoutingConfig config,
      double[] logits,
      double @Nullable [] correctionBias,
      int[] ids,
      double[] weights) {
    int topK = ids.length;
    if (config.scoring() == RoutingConfig.Scoring.SPARSE_MIXER) {
      sparseMixer(config.jitter(), logits, ids, weights);
    } else {
      double[] scores = scores(config.scoring(), logits);
      float[] choice = new float[logits.length];
      for (int e = 0; e < choice.length; e++) {
        choice[e] = (float) scores[e];
        if (correctionBias != null) {
          choice[e] += (float) correctionBias[e];
        }
      }
      keepBestGroups(config, choice);
      for (int k = 0; k < topK; k++) {
        ids[k] = takeLargest(choice);
        weights[k] = scores[ids[k]];
      }
      if (config.scoring() == RoutingConfig.Scoring.SOFTMAX_TOPK) {
        System.arraycopy(softmax(weights), 0, weights, 0, topK);
      }
    }
    if (config.renormalize()) {
      double sum = Arrays.stream(weights).sum() + config.epsilon();
      for (int k = 0; k < topK; k++) {
        weights[k] /= sum;
      }
    }
    for (int k = 0; k < topK; k++) {
      weights[k] *= config.scalingFactor();
    }
  }

  private static double[] scores(RoutingConfig.Scoring scoring, double[] logits) {
    return switch (scoring) {
      case SOFTMAX -> softmax(logits);
      case SOFTMAX_TOPK, SPARSE_MIXER -> logits.clone();
      case SIGMOID -> Arrays.stream(logits).map(ReferenceMath::sigmoid).toArray();
      case SQRT_SOFTPLUS -> Arrays.stream(logits).map(z -> Math.sqrt(softplus(z))).toArray();
    };
  }

  private static double softplus(double z) {
    return Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
  }

  private static double[] softmax(double[] z) {
    double max = Arrays.stream(z).max().orElse(0);
    double[] p = Arrays.stream(z).map(v -> Math.exp(v - max)).toArray();
    double sum = Arrays.stream(p).sum();
    return Arrays.stream(p).map(v -> v / sum).toArray();
  }

  /** Excludes the experts of all but the best groups; consecutive groups of equal size. */
  private static void keepBestGroups(RoutingConfig config, float[] choice) {
    int groups = config.numGroups();
    if (groups == 1) {
      return;
    }
    int size = choice.length / groups;
    float[] groupScores = new float[groups];
    for (int g = 0; g < groups; g++) {
      float[] members = Arrays.copyOfRange(choice, g * size, (g + 1) * size);
      groupScores[g] = members[largest(members)];
      if (config.groupScore() == GroupScore.SUM_OF_TOP2) {
        takeLargest(members);
        groupScores[g] += members[largest(members)];
      }
    }
    boolean[] kept = new boolean[groups];
    for (int n = 0; n < config.topkGroups(); n++) {
      kept[takeLargest(groupScores)] = true;
    }
    for (int e = 0; e < choice.length; e++) {
      if (!kept[e / size]) {
        choice[e] = EXCLUDED;
      }
    }
  }

  /** Below everything, NaN included: marks what cannot be chosen (again). */
  private static final float EXCLUDED = Float.intBitsToFloat(0xffc0_dead);

  private static int takeLargest(float[] values) {
    int best = largest(values);
    values[best] = EXCLUDED;
    return best;
  }

  private static int largest(float[] values) {
    int best = 0;
    for (int i = 1; i < values.length; i++) {
      if (rank(values[i]) > rank(values[best])
          || (rank(values[i]) == 2 && values[i] > values[best])) {
        best = i;
      }
    }
    return best;
  }

  /** 2 for numbers, 1 for NaN, 0 for what is excluded. */
  private static int rank(float v) {
    if (!Float.isNaN(v)) {
      return 2;
    }
    return Float.floatToRawIntBits(v) == Float.floatToRawIntBits(EXCLUDED) ? 0 : 1;
  }

  /** PhiMoE's inference rule: two rounds of a softmax over what is close enough to the maximum. */
  private static void sparseMixer(double jitter, double[] z, int[] ids, double[] weights) {
    double[] current = z.clone();
    for (int round = 0; round < ids.length; round++) {
      int winner = 0;
      for (int e = 1; e < z.length; e++) {
        if (current[e] > current[winner]) {
          winner = e;
        }
      }
      double max = current[winner];
      double sum = 0;
      for (int e = 0; e < z.length; e++) {
        boolean masked = (max - z[e]) / Math.max(Math.abs(z[e]), max) > 2 * jitter;
        if (!masked) {
          sum += Math.exp(current[e] - max);
        }
      }
      ids[round] = winner;
      weights[round] = 1 / sum;
      current[winner] = Double.NEGATIVE_INFINITY;
    }
  }
}
