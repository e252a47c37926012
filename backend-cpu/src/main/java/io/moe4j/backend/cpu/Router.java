package io.moe4j.backend.cpu;

import io.moe4j.api.config.RoutingConfig;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;

/**
 * From logits to topk ids and weights, as {@link RoutingConfig} says: scores in f32 (exponentials
 * in double, rounded once), ties by ascending expert id. Scratch for one thread.
 */
final class Router {
  private static final ValueLayout.OfFloat F32 = ValueLayout.JAVA_FLOAT_UNALIGNED;
  private static final ValueLayout.OfInt I32 = ValueLayout.JAVA_INT_UNALIGNED;

  private final RoutingConfig config;
  private final int experts;
  private final int topK;
  private final float[] logits;
  private final float[] scores;
  private final float[] choice;
  private final boolean[] open;
  private final float[] groupScores;
  private final boolean[] groupTaken;
  private final int[] ids;
  private final float[] weights;
  private final float[] correctionBias;
  private final float[] expertScale;
  private final int[] tokenExperts;

  /**
   * @param correctionBias one per expert, or empty
   * @param expertScale one per expert, or empty
   * @param tokenExperts {@code [V, K]}, or empty
   */
  Router(
      RoutingConfig config,
      int experts,
      int topK,
      float[] correctionBias,
      float[] expertScale,
      int[] tokenExperts) {
    this.config = config;
    this.experts = experts;
    this.correctionBias = correctionBias;
    this.expertScale = expertScale;
    this.tokenExperts = tokenExperts;
    this.topK = topK;
    logits = new float[experts];
    scores = new float[experts];
    choice = new float[experts];
    open = new boolean[experts];
    groupScores = new float[config.numGroups()];
    groupTaken = new boolean[config.numGroups()];
    ids = new int[topK];
    weights = new float[topK];
  }

  /**
   * Routes one token.
   *
   * @param from F32 {@code [T, E]}
   * @param token which row
   * @param tokenId the token's id, or -1 where the scores choose
   * @param idsOut int32 {@code [T, K]}
   * @param weightsOut F32 {@code [T, K]}
   */
  void route(
      MemorySegment from, long token, int tokenId, MemorySegment idsOut, MemorySegment weightsOut) {
    for (int e = 0; e < experts; e++) {
      logits[e] = from.getAtIndex(F32, token * experts + e);
    }
    Arrays.fill(open, true);
    if (config.scoring() == RoutingConfig.Scoring.SPARSE_MIXER) {
      sparseMixer();
    } else if (config.byTokenId()) {
      score();
      for (int k = 0; k < topK; k++) {
        ids[k] = tokenExperts[Math.toIntExact((long) tokenId * topK + k)];
        weights[k] = scores[ids[k]];
      }
      if (config.scoring() == RoutingConfig.Scoring.SOFTMAX_TOPK) {
        softmax(weights, weights);
      }
    } else {
      score();
      for (int e = 0; e < experts; e++) {
        choice[e] = correctionBias.length > 0 ? scores[e] + correctionBias[e] : scores[e];
      }
      if (config.numGroups() > 1) {
        keepBestGroups();
      }
      for (int k = 0; k < topK; k++) {
        int best = largest(choice);
        ids[k] = best;
        open[best] = false;
        weights[k] = scores[best];
      }
      if (config.scoring() == RoutingConfig.Scoring.SOFTMAX_TOPK) {
        softmax(weights, weights);
      }
    }
    if (config.renormalize()) {
      double sum = 0;
      for (float w : weights) {
        sum += w;
      }
      sum = Math.max(sum + config.epsilon(), config.sumFloor());
      for (int k = 0; k < topK; k++) {
        weights[k] = (float) (weights[k] / sum);
      }
    }
    for (int k = 0; k < topK; k++) {
      idsOut.setAtIndex(I32, token * topK + k, ids[k]);
      float scale = expertScale.length > 0 ? expertScale[ids[k]] : 1f;
      weightsOut.setAtIndex(F32, token * topK + k, weights[k] * config.scalingFactor() * scale);
    }
  }

  private void score() {
    switch (config.scoring()) {
      case SOFTMAX -> softmax(logits, scores);
      case SIGMOID -> {
        for (int e = 0; e < experts; e++) {
          scores[e] = (float) (1 / (1 + Math.exp(-(double) logits[e])));
        }
      }
      case SQRT_SOFTPLUS -> {
        for (int e = 0; e < experts; e++) {
          double z = logits[e];
          scores[e] = (float) Math.sqrt(Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z))));
        }
      }
      default -> System.arraycopy(logits, 0, scores, 0, experts);
    }
  }

  private static void softmax(float[] z, float[] out) {
    double max = Double.NEGATIVE_INFINITY;
    for (float v : z) {
      max = Math.max(max, v);
    }
    double sum = 0;
    for (float v : z) {
      sum += Math.exp(v - max);
    }
    for (int i = 0; i < z.length; i++) {
      out[i] = (float) (Math.exp(z[i] - max) / sum);
    }
  }

  /** The open expert with the largest value, the lowest id among equals; NaN comes last. */
  private int largest(float[] values) {
    int best = -1;
    for (int e = 0; e < experts; e++) {
      if (open[e] && (best < 0 || beats(values[e], values[best]))) {
        best = e;
      }
    }
    return best;
  }

  private static boolean beats(float a, float b) {
    return a > b || (Float.isNaN(b) && !Float.isNaN(a));
  }

  private void keepBestGroups() {
    int groups = config.numGroups();
    int size = experts / groups;
    for (int g = 0; g < groups; g++) {
      float first = Float.NEGATIVE_INFINITY;
      float second = Float.NEGATIVE_INFINITY;
      for (int e = g * size; e < (g + 1) * size; e++) {
        float v = choice[e];
        if (v > first) {
          second = first;
          first = v;
        } else if (v > second) {
          second = v;
        }
      }
      groupScores[g] =
          config.groupScore() == RoutingConfig.GroupScore.SUM_OF_TOP2 ? first + second : first;
    }
    Arrays.fill(groupTaken, false);
    for (int n = 0; n < config.topkGroups(); n++) {
      int best = -1;
      for (int g = 0; g < groups; g++) {
        if (!groupTaken[g] && (best < 0 || groupScores[g] > groupScores[best])) {
          best = g;
        }
      }
      groupTaken[best] = true;
    }
    for (int e = 0; e < experts; e++) {
      open[e] = groupTaken[e / size];
    }
  }

  private void sparseMixer() {
    for (int k = 0; k < topK; k++) {
      int best = largest(logits);
      float max = logits[best];
      double sum = 0;
      for (int e = 0; e < experts; e++) {
        float z = logits[e];
        boolean masked = (max - z) / Math.max(Math.abs(z), max) > 2 * config.jitter();
        if (open[e] && !masked) {
          sum += Math.exp((double) z - max);
        }
      }
      ids[k] = best;
      weights[k] = (float) (1 / sum);
      open[best] = false;
    }
  }
}
