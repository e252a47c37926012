package io.moe4j.api.config;

import java.util.Objects;

/**
 * How router logits {@code z [T, E]} become topk ids and weights. In order, all in f32:
 *
 * <ol>
 *   <li>scores {@code s = scoring(z)}; SOFTMAX_TOPK scores are the logits themselves
 *   <li>the choice is made on {@code c = s + correctionBias} (bias where {@link #correctionBias()}
 *       says so)
 *   <li>if {@code numGroups > 1}: experts form {@code numGroups} consecutive groups of equal size;
 *       a group's score is the sum of its two largest {@code c} ({@link GroupScore#SUM_OF_TOP2}) or
 *       its largest ({@link GroupScore#MAX}); only the best {@code topkGroups} groups stay
 *   <li>the {@code top_k} largest {@code c}, in descending order, ties by ascending expert id
 *   <li>weights {@code w = s[id]} (never {@code c}); SOFTMAX_TOPK: softmax over the chosen logits
 *   <li>if {@code renormalize}: {@code w / (sum(w) + epsilon)}
 *   <li>{@code w * scalingFactor}
 * </ol>
 *
 * SPARSE_MIXER (PhiMoE, top_k 2, inference form) instead repeats twice: {@code m = max(z)}; experts
 * with {@code (m - z) / max(|z|, m) > 2 * jitter} are masked; weight = softmax over the rest, at
 * the maximum; the winner is masked for the next round.
 *
 * @param scoring the score function
 * @param renormalize whether chosen weights are divided by their sum
 * @param epsilon added to that sum
 * @param scalingFactor factor on every weight
 * @param numGroups 1 = no grouping
 * @param topkGroups groups that stay
 * @param groupScore how a group is scored
 * @param correctionBias whether a selection bias {@code [E]} comes with the router's weights
 * @param jitter SPARSE_MIXER's threshold; 0 elsewhere
 * @since 0.1.0
 */
public record RoutingConfig(
    Scoring scoring,
    boolean renormalize,
    float epsilon,
    float scalingFactor,
    int numGroups,
    int topkGroups,
    GroupScore groupScore,
    boolean correctionBias,
    float jitter) {

  /** Softmax over all experts, weights as they are (olmoe, qwen2_moe). */
  public static final RoutingConfig SOFTMAX = of(Scoring.SOFTMAX, false);

  /** Softmax over all experts, chosen weights divided by their sum (qwen3_moe, mixtral). */
  public static final RoutingConfig SOFTMAX_RENORMALIZE = of(Scoring.SOFTMAX, true);

  /** Softmax over the chosen logits only (gpt_oss, granitemoe). */
  public static final RoutingConfig SOFTMAX_TOPK = of(Scoring.SOFTMAX_TOPK, false);

  /** Sigmoid of the chosen logits (llama4, which also applies the weight on the expert's input). */
  public static final RoutingConfig SIGMOID = of(Scoring.SIGMOID, false);

  /** Score functions. */
  public enum Scoring {
    /** Softmax over all {@code E} logits. */
    SOFTMAX,
    /** Choice on the logits, softmax over the chosen ones. */
    SOFTMAX_TOPK,
    /** Logistic function of each logit. */
    SIGMOID,
    /** {@code sqrt(softplus(z))} of each logit. */
    SQRT_SOFTPLUS,
    /** PhiMoE's two-round masked softmax. */
    SPARSE_MIXER
  }

  /** How a group of experts is scored. */
  public enum GroupScore {
    /** Sum of the two largest selection scores in the group (DeepSeek-V3). */
    SUM_OF_TOP2,
    /** Largest selection score in the group (DeepSeek-V2). */
    MAX
  }

  /**
   * Checks the components.
   *
   * @param scoring the score function
   * @param renormalize divide chosen weights by their sum
   * @param epsilon not negative
   * @param scalingFactor finite
   * @param numGroups at least 1
   * @param topkGroups {@code 1..numGroups}
   * @param groupScore how a group is scored
   * @param correctionBias a selection bias exists
   * @param jitter not negative
   */
  public RoutingConfig {
    Objects.requireNonNull(scoring, "scoring");
    Objects.requireNonNull(groupScore, "groupScore");
    if (numGroups < 1 || topkGroups < 1 || topkGroups > numGroups) {
      throw new IllegalArgumentException(
          "numGroups is "
              + numGroups
              + " and topkGroups "
              + topkGroups
              + "; need 1 <= topkGroups <= numGroups");
    }
    if (!(epsilon >= 0) || !(jitter >= 0) || !Float.isFinite(scalingFactor)) {
      throw new IllegalArgumentException(
          "epsilon "
              + epsilon
              + " and jitter "
              + jitter
              + " must not be negative, scalingFactor "
              + scalingFactor
              + " must be finite");
    }
    if (scoring == Scoring.SPARSE_MIXER && (numGroups > 1 || correctionBias)) {
      throw new IllegalArgumentException("SPARSE_MIXER takes neither groups nor a correction bias");
    }
  }

  /**
   * No groups, no bias, factor 1.
   *
   * @param scoring the score function
   * @param renormalize divide chosen weights by their sum
   * @return the config
   */
  public static RoutingConfig of(Scoring scoring, boolean renormalize) {
    return new RoutingConfig(scoring, renormalize, 0f, 1f, 1, 1, GroupScore.MAX, false, 0f);
  }

  /**
   * DeepSeek-V3: sigmoid, bias for the choice only, groups scored by their two best, renormalised
   * with 1e-20.
   *
   * @param numGroups groups
   * @param topkGroups groups that stay
   * @param renormalize divide chosen weights by their sum
   * @param scalingFactor factor on the weights
   * @return the config
   */
  public static RoutingConfig deepseekV3(
      int numGroups, int topkGroups, boolean renormalize, float scalingFactor) {
    return new RoutingConfig(
        Scoring.SIGMOID,
        renormalize,
        1e-20f,
        scalingFactor,
        numGroups,
        topkGroups,
        GroupScore.SUM_OF_TOP2,
        true,
        0f);
  }

  /**
   * PhiMoE.
   *
   * @param jitter the config's router_jitter_noise
   * @return the config
   */
  public static RoutingConfig sparseMixer(float jitter) {
    return new RoutingConfig(
        Scoring.SPARSE_MIXER, false, 0f, 1f, 1, 1, GroupScore.MAX, false, jitter);
  }
}
