package io.moe4j.api.config;

import java.util.List;
import java.util.Objects;
import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * How router logits {@code z [T, E]} become topk ids and weights. The logits are the product of the
 * router's weight with the hidden state, or with its {@link #inputNorm() norm}. In order, all in
 * f32:
 *
 * <ol>
 *   <li>scores {@code s = scoring(z)}; SOFTMAX_TOPK scores are the logits themselves
 *   <li>the choice is made on {@code c = s + correctionBias} (bias where {@link #correctionBias()}
 *       says so)
 *   <li>if {@code numGroups > 1}: experts form {@code numGroups} consecutive groups of equal size;
 *       a group's score is the sum of its two largest {@code c} ({@link GroupScore#SUM_OF_TOP2}) or
 *       its largest ({@link GroupScore#MAX}); only the best {@code topkGroups} groups stay
 *   <li>the {@code top_k} largest {@code c}, in descending order, ties by ascending expert id; or,
 *       {@link #byTokenId()}, the experts that a table has for the token's id, in its order
 *   <li>weights {@code w = s[id]} (never {@code c}); SOFTMAX_TOPK: softmax over the chosen logits
 *   <li>if {@code renormalize}: {@code w / max(sum(w) + epsilon, sumFloor)}
 *   <li>{@code w * scalingFactor}, and {@code * expertScale[id]} if {@link #expertScale()}
 * </ol>
 *
 * SPARSE_MIXER (PhiMoE, top_k 2, inference form) instead repeats twice: {@code m = max(z)}; experts
 * with {@code (m - z) / max(|z|, m) > 2 * jitter} are masked; weight = softmax over the rest, at
 * the maximum; the winner is masked for the next round.
 *
 * <p>A value; equal rules are equal.
 *
 * @since 0.1.0
 */
public final class RoutingConfig {
  /** Softmax over all experts, weights as they are (olmoe, qwen2_moe). */
  public static final RoutingConfig SOFTMAX = of(Scoring.SOFTMAX, false);

  /** Softmax over all experts, chosen weights divided by their sum (qwen3_moe, mixtral). */
  public static final RoutingConfig SOFTMAX_RENORMALIZE = of(Scoring.SOFTMAX, true);

  /** Softmax over the chosen logits only (gpt_oss, granitemoe). */
  public static final RoutingConfig SOFTMAX_TOPK = of(Scoring.SOFTMAX_TOPK, false);

  /** Sigmoid of the chosen logits (llama4, which also applies the weight on the expert's input). */
  public static final RoutingConfig SIGMOID = of(Scoring.SIGMOID, false);

  /** Score functions. Open: later versions may add some, so a switch needs a default. */
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

  /** How a group of experts is scored. Open: later versions may add some. */
  public enum GroupScore {
    /** Sum of the two largest selection scores in the group (DeepSeek-V3). */
    SUM_OF_TOP2,
    /** Largest selection score in the group (DeepSeek-V2). */
    MAX
  }

  private final Scoring scoring;
  private final boolean renormalize;
  private final float epsilon;
  private final float scalingFactor;
  private final int numGroups;
  private final int topkGroups;
  private final GroupScore groupScore;
  private final boolean correctionBias;
  private final float jitter;
  private final float sumFloor;
  private final boolean expertScale;
  private final boolean byTokenId;
  private final Optional<RmsNorm> inputNorm;

  private RoutingConfig(Builder b) {
    scoring = b.scoring;
    renormalize = b.renormalize;
    epsilon = b.epsilon;
    scalingFactor = b.scalingFactor;
    numGroups = b.numGroups;
    topkGroups = b.topkGroups;
    groupScore = b.groupScore;
    correctionBias = b.correctionBias;
    jitter = b.jitter;
    sumFloor = b.sumFloor;
    expertScale = b.expertScale;
    byTokenId = b.byTokenId;
    inputNorm = b.inputNorm;
    if (numGroups < 1 || topkGroups < 1 || topkGroups > numGroups) {
      throw new IllegalArgumentException(
          "numGroups is "
              + numGroups
              + " and topkGroups "
              + topkGroups
              + "; need 1 <= topkGroups <= numGroups");
    }
    if (!(epsilon >= 0)
        || !(jitter >= 0)
        || !(sumFloor >= 0)
        || !Float.isFinite(sumFloor)
        || !Float.isFinite(scalingFactor)) {
      throw new IllegalArgumentException(
          "epsilon "
              + epsilon
              + ", sumFloor "
              + sumFloor
              + " and jitter "
              + jitter
              + " must not be negative, scalingFactor "
              + scalingFactor
              + " must be finite");
    }
    if (scoring == Scoring.SPARSE_MIXER && (numGroups > 1 || correctionBias)) {
      throw new IllegalArgumentException("SPARSE_MIXER takes neither groups nor a correction bias");
    }
    if (byTokenId && (scoring == Scoring.SPARSE_MIXER || numGroups > 1 || correctionBias)) {
      throw new IllegalArgumentException(
          "a choice by token id takes neither SPARSE_MIXER nor groups nor a correction bias");
    }
  }

  /**
   * A rule without groups, bias or renormalisation, with factor 1, unless said otherwise.
   *
   * @param scoring the score function
   * @return a new builder
   */
  public static Builder builder(Scoring scoring) {
    return new Builder(scoring);
  }

  /** {@return a builder that starts from this rule} */
  public Builder toBuilder() {
    return new Builder(scoring)
        .renormalize(renormalize)
        .epsilon(epsilon)
        .scalingFactor(scalingFactor)
        .groups(numGroups, topkGroups, groupScore)
        .correctionBias(correctionBias)
        .jitter(jitter)
        .sumFloor(sumFloor)
        .expertScale(expertScale)
        .byTokenId(byTokenId)
        .inputNorm(inputNorm.orElse(null));
  }

  /** {@return the score function} */
  public Scoring scoring() {
    return scoring;
  }

  /** {@return whether chosen weights are divided by their sum} */
  public boolean renormalize() {
    return renormalize;
  }

  /** {@return what is added to that sum} */
  public float epsilon() {
    return epsilon;
  }

  /** {@return factor on every weight} */
  public float scalingFactor() {
    return scalingFactor;
  }

  /** {@return groups of consecutive experts; 1 = no grouping} */
  public int numGroups() {
    return numGroups;
  }

  /** {@return groups that stay} */
  public int topkGroups() {
    return topkGroups;
  }

  /** {@return how a group is scored} */
  public GroupScore groupScore() {
    return groupScore;
  }

  /** {@return whether a selection bias {@code [E]} comes with the router's weights} */
  public boolean correctionBias() {
    return correctionBias;
  }

  /** {@return SPARSE_MIXER's threshold; 0 elsewhere} */
  public float jitter() {
    return jitter;
  }

  /**
   * {@return what the sum of the chosen weights is at least taken for where it divides them; 0 = no
   * floor (ernie4_5_moe has one)}
   *
   * @since 0.2.0
   */
  public float sumFloor() {
    return sumFloor;
  }

  /**
   * {@return whether each expert's weight has a factor of its own, which comes with the router's
   * weights (gemma4)}
   *
   * @since 0.2.0
   */
  public boolean expertScale() {
    return expertScale;
  }

  /**
   * {@return whether a table that comes with the router's weights chooses a token's experts by its
   * id in the vocabulary (the first layers of deepseek_v4); the scores give the weights only}
   *
   * @since 0.2.0
   */
  public boolean byTokenId() {
    return byTokenId;
  }

  /**
   * {@return how the router normalises the hidden state that it reads (gemma4); empty = not at all}
   *
   * @since 0.2.0
   */
  public Optional<RmsNorm> inputNorm() {
    return inputNorm;
  }

  private List<Object> values() {
    return List.of(
        scoring,
        renormalize,
        epsilon,
        scalingFactor,
        numGroups,
        topkGroups,
        groupScore,
        correctionBias,
        jitter,
        sumFloor,
        expertScale,
        byTokenId,
        inputNorm);
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof RoutingConfig r && r.values().equals(values());
  }

  @Override
  public int hashCode() {
    return values().hashCode();
  }

  @Override
  public String toString() {
    return "RoutingConfig["
        + scoring
        + (renormalize ? " renormalize" : "")
        + (epsilon != 0 ? " epsilon=" + epsilon : "")
        + (scalingFactor != 1 ? " scalingFactor=" + scalingFactor : "")
        + (numGroups > 1 ? " groups=" + topkGroups + "/" + numGroups + " " + groupScore : "")
        + (correctionBias ? " correctionBias" : "")
        + (jitter != 0 ? " jitter=" + jitter : "")
        + (sumFloor != 0 ? " sumFloor=" + sumFloor : "")
        + (expertScale ? " expertScale" : "")
        + (byTokenId ? " byTokenId" : "")
        + inputNorm.map(n -> " inputNorm=" + n.epsilon()).orElse("")
        + "]";
  }

  /**
   * No groups, no bias, factor 1.
   *
   * @param scoring the score function
   * @param renormalize divide chosen weights by their sum
   * @return the config
   */
  public static RoutingConfig of(Scoring scoring, boolean renormalize) {
    return builder(scoring).renormalize(renormalize).build();
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
    return builder(Scoring.SIGMOID)
        .renormalize(renormalize)
        .epsilon(1e-20f)
        .scalingFactor(scalingFactor)
        .groups(numGroups, topkGroups, GroupScore.SUM_OF_TOP2)
        .correctionBias(true)
        .build();
  }

  /**
   * PhiMoE.
   *
   * @param jitter the config's router_jitter_noise
   * @return the config
   */
  public static RoutingConfig sparseMixer(float jitter) {
    return builder(Scoring.SPARSE_MIXER).jitter(jitter).build();
  }

  /** Sets one thing at a time; not thread-safe. */
  public static final class Builder {
    private final Scoring scoring;
    private boolean renormalize;
    private float epsilon;
    private float scalingFactor = 1;
    private int numGroups = 1;
    private int topkGroups = 1;
    private GroupScore groupScore = GroupScore.MAX;
    private boolean correctionBias;
    private float jitter;
    private float sumFloor;
    private boolean expertScale;
    private boolean byTokenId;
    private Optional<RmsNorm> inputNorm = Optional.empty();

    private Builder(Scoring scoring) {
      this.scoring = Objects.requireNonNull(scoring, "scoring");
    }

    /**
     * Whether chosen weights are divided by their sum.
     *
     * @param renormalize false unless set
     * @return this
     */
    public Builder renormalize(boolean renormalize) {
      this.renormalize = renormalize;
      return this;
    }

    /**
     * What is added to the sum that weights are divided by.
     *
     * @param epsilon not negative; 0 unless set
     * @return this
     */
    public Builder epsilon(float epsilon) {
      this.epsilon = epsilon;
      return this;
    }

    /**
     * Factor on every weight.
     *
     * @param scalingFactor finite; 1 unless set
     * @return this
     */
    public Builder scalingFactor(float scalingFactor) {
      this.scalingFactor = scalingFactor;
      return this;
    }

    /**
     * Consecutive groups of equal size, of which only the best are chosen from.
     *
     * @param numGroups at least 1
     * @param topkGroups {@code 1..numGroups}
     * @param groupScore how a group is scored
     * @return this
     */
    public Builder groups(int numGroups, int topkGroups, GroupScore groupScore) {
      this.numGroups = numGroups;
      this.topkGroups = topkGroups;
      this.groupScore = Objects.requireNonNull(groupScore, "groupScore");
      return this;
    }

    /**
     * Whether a selection bias comes with the router's weights.
     *
     * @param correctionBias false unless set
     * @return this
     */
    public Builder correctionBias(boolean correctionBias) {
      this.correctionBias = correctionBias;
      return this;
    }

    /**
     * SPARSE_MIXER's threshold.
     *
     * @param jitter not negative; 0 unless set
     * @return this
     */
    public Builder jitter(float jitter) {
      this.jitter = jitter;
      return this;
    }

    /**
     * What the sum that weights are divided by is at least taken for.
     *
     * @param sumFloor not negative, finite; 0 unless set
     * @return this
     * @since 0.2.0
     */
    public Builder sumFloor(float sumFloor) {
      this.sumFloor = sumFloor;
      return this;
    }

    /**
     * Whether factors on the experts' weights come with the router's weights.
     *
     * @param expertScale false unless set
     * @return this
     * @since 0.2.0
     */
    public Builder expertScale(boolean expertScale) {
      this.expertScale = expertScale;
      return this;
    }

    /**
     * Whether a table that comes with the router's weights chooses by token id.
     *
     * @param byTokenId false unless set
     * @return this
     * @since 0.2.0
     */
    public Builder byTokenId(boolean byTokenId) {
      this.byTokenId = byTokenId;
      return this;
    }

    /**
     * How the router normalises what it reads.
     *
     * @param inputNorm null, not at all, unless set
     * @return this
     * @since 0.2.0
     */
    public Builder inputNorm(@Nullable RmsNorm inputNorm) {
      this.inputNorm = Optional.ofNullable(inputNorm);
      return this;
    }

    /**
     * {@return the rule}
     *
     * @throws IllegalArgumentException if a value is out of range or two of them do not fit
     */
    public RoutingConfig build() {
      return new RoutingConfig(this);
    }
  }
}
