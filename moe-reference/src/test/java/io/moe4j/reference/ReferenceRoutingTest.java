package io.moe4j.reference;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;

/** Every expectation is worked out by hand; logits are logarithms so that softmax is a fraction. */
class ReferenceRoutingTest {
  private static final double @Nullable [] NO_BIAS = null;
  private final int[] ids = new int[2];
  private final double[] weights = new double[2];

  private void route(RoutingConfig config, double @Nullable [] bias, double... logits) {
    ReferenceRouting.route(config, logits, bias, ids, weights);
  }

  private static double[] logs(double... p) {
    double[] z = new double[p.length];
    for (int i = 0; i < p.length; i++) {
      z[i] = Math.log(p[i]) + 3;
    }
    return z;
  }

  /** The logit whose sigmoid is p. */
  private static double[] logits(double... p) {
    double[] z = new double[p.length];
    for (int i = 0; i < p.length; i++) {
      z[i] = Math.log(p[i] / (1 - p[i]));
    }
    return z;
  }

  private void assertWeights(double... expected) {
    assertThat(weights).containsExactly(expected, within(1e-12));
  }

  @Test
  void softmaxOverAll() {
    route(RoutingConfig.SOFTMAX, NO_BIAS, logs(1, 4, 3, 2));
    assertThat(ids).containsExactly(1, 2);
    assertWeights(0.4, 0.3);
  }

  @Test
  void renormalised() {
    route(RoutingConfig.SOFTMAX_RENORMALIZE, NO_BIAS, logs(1, 4, 3, 2));
    assertWeights(4 / 7.0, 3 / 7.0);
  }

  @Test
  void softmaxOverTheChosen() {
    route(RoutingConfig.SOFTMAX_TOPK, NO_BIAS, logs(1, 4, 3, 2));
    assertThat(ids).containsExactly(1, 2);
    assertWeights(4 / 7.0, 3 / 7.0);
  }

  @Test
  void sigmoidOfEach() {
    route(RoutingConfig.SIGMOID, NO_BIAS, logits(0.5, 0.9, 0.2, 0.75));
    assertThat(ids).containsExactly(1, 3);
    assertWeights(0.9, 0.75);
  }

  @Test
  void sqrtSoftplus() {
    // softplus(ln(e^4 - 1)) = 4, softplus(ln(e - 1)) = 1
    double four = Math.log(Math.exp(4) - 1);
    double one = Math.log(Math.E - 1);
    route(RoutingConfig.of(Scoring.SQRT_SOFTPLUS, true), NO_BIAS, one, four, -50);
    assertThat(ids).containsExactly(1, 0);
    assertWeights(2 / 3.0, 1 / 3.0);
  }

  @Test
  void tiesGoToTheSmallerId() {
    route(RoutingConfig.SOFTMAX, NO_BIAS, 1, 2, 2, 2);
    assertThat(ids).containsExactly(1, 2);
  }

  @Test
  void sigmoidsThatSaturateInF32Tie() {
    route(RoutingConfig.SIGMOID, NO_BIAS, 20, 30, 40, 1);
    assertThat(ids).containsExactly(0, 1);
  }

  @Test
  void nanIsChosenLast() {
    route(RoutingConfig.SIGMOID, NO_BIAS, Double.NaN, 1, Double.NaN, 2);
    assertThat(ids).containsExactly(3, 1);
    route(RoutingConfig.SIGMOID, NO_BIAS, Double.NaN, Double.NaN, 0, Double.NaN);
    assertThat(ids).containsExactly(2, 0);
  }

  @Test
  void theBiasChoosesAndTheScoreWeighs() {
    route(
        RoutingConfig.builder(Scoring.SIGMOID).scalingFactor(2.5f).correctionBias(true).build(),
        new double[] {0, 0, 0.7, 0},
        logits(0.5, 0.6, 0.25, 0.1));
    assertThat(ids).containsExactly(2, 1);
    assertWeights(2.5 * 0.25, 2.5 * 0.6);
  }

  /** Four groups of two; sums of two are 1.0, 1.1, 0.9, 1.2: groups 3 and 1 stay. */
  @Test
  void deepseekGroupsBySumOfTwo() {
    route(
        RoutingConfig.deepseekV3(4, 2, true, 2f),
        new double[8],
        logits(0.9, 0.1, 0.55, 0.55, 0.89, 0.01, 0.5, 0.7));
    assertThat(ids).containsExactly(7, 2);
    assertWeights(2 * 0.7 / 1.25, 2 * 0.55 / 1.25);
  }

  /** The same scores by maximum: groups 0 and 2 stay. */
  @Test
  void groupsByMaximum() {
    route(
        RoutingConfig.builder(Scoring.SIGMOID).groups(4, 2, GroupScore.MAX).build(),
        NO_BIAS,
        logits(0.9, 0.1, 0.55, 0.55, 0.89, 0.01, 0.5, 0.7));
    assertThat(ids).containsExactly(0, 4);
    assertWeights(0.9, 0.89);
  }

  /**
   * Scores may be negative with a bias; an excluded group must stay excluded all the same: only one
   * group of two is kept, so both its experts are chosen.
   */
  @Test
  void excludedGroupsStayOutBelowNegativeScores() {
    route(
        RoutingConfig.builder(Scoring.SIGMOID)
            .groups(2, 1, GroupScore.MAX)
            .correctionBias(true)
            .build(),
        new double[] {-5, -9, -6, -6},
        logits(0.5, 0.5, 0.5, 0.5));
    assertThat(ids).containsExactly(0, 1);
  }

  /**
   * Jitter 0.1 masks what is more than 20% below the maximum: round one keeps 10 and 9, round two 9
   * and 8.
   */
  @Test
  void sparseMixer() {
    route(RoutingConfig.sparseMixer(0.1f), NO_BIAS, 9, 10, 1, 7.9);
    assertThat(ids).containsExactly(1, 0);
    double e = Math.exp(-1);
    assertWeights(1 / (1 + e), 1 / (1 + Math.exp(-1.1)));
  }
}
