package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.config.RoutingConfig.GroupScore;
import io.moe4j.api.config.RoutingConfig.Scoring;
import org.junit.jupiter.api.Test;

/** Which methods kernels other than the router's may route by; needs no card. */
class RoutingElsewhereTest {
  private static boolean fits(RoutingConfig routing, int experts, int k) {
    return TopkKernel.fitsToken(routing, experts, k, 4);
  }

  private static RoutingConfig.Builder sigmoid() {
    return RoutingConfig.builder(Scoring.SIGMOID);
  }

  @Test
  void asManyAsTheRegistersHold() {
    for (Scoring s : Scoring.values()) {
      RoutingConfig r = RoutingConfig.builder(s).renormalize(true).scalingFactor(2).build();
      assertThat(fits(r, 128, 32)).as("%s", s).isEqualTo(s != Scoring.SPARSE_MIXER);
    }
    assertThat(fits(RoutingConfig.SOFTMAX, 129, 8)).isFalse();
    assertThat(fits(RoutingConfig.SOFTMAX, 128, 33)).isFalse();
  }

  /** What the kernel is not told of, it would leave out. */
  @Test
  void onlyWhatTheKernelIsTold() {
    assertThat(fits(sigmoid().build(), 64, 8)).isTrue();
    assertThat(fits(sigmoid().groups(4, 2, GroupScore.MAX).build(), 64, 8)).isFalse();
    assertThat(fits(sigmoid().renormalize(true).sumFloor(1e-3f).build(), 64, 8)).isFalse();
    assertThat(fits(sigmoid().expertScale(true).build(), 64, 8)).isFalse();
    assertThat(fits(sigmoid().byTokenId(true).build(), 64, 8)).isFalse();
  }
}
