package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.RoutingConfig;
import java.util.Arrays;
import org.junit.jupiter.api.Test;

/** How launches are sized; no device needed. */
class LaunchPlanTest {
  private static final int SMS = 132;

  @Test
  void fewTokensReadTheWeightsByWarps() {
    assertThat(DenseGemm.plan(1, 128, 2048, true, SMS))
        .isEqualTo(new DenseGemm.Plan(DenseGemm.Method.GEMV, 32, 1));
    assertThat(DenseGemm.plan(16, 129, 2048, false, SMS))
        .isEqualTo(new DenseGemm.Plan(DenseGemm.Method.GEMV, 33, 2));
  }

  @Test
  void tilesGrowWhenThereAreEnoughOfThem() {
    assertThat(DenseGemm.plan(17, 128, 2048, true, SMS))
        .isEqualTo(new DenseGemm.Plan(DenseGemm.Method.TENSOR_64, 2, 1));
    assertThat(DenseGemm.plan(8192, 4096, 2048, true, SMS))
        .isEqualTo(new DenseGemm.Plan(DenseGemm.Method.TENSOR_128, 32, 64));
    assertThat(DenseGemm.plan(8192, 4096, 2048, false, SMS))
        .isEqualTo(new DenseGemm.Plan(DenseGemm.Method.TILED, 64, 128));
    assertThat(DenseGemm.plan(100, 130, 7, false, SMS))
        .isEqualTo(new DenseGemm.Plan(DenseGemm.Method.TILED, 3, 2));
  }

  @Test
  void sortTakesOneLaunchWhileCountsAndKeysFitSharedMemory() {
    int most = PairSort.FUSED_PAIRS;
    assertThat(PairSort.fusedBytes(512, 128, 1, most)).isEqualTo(4 * 128 + 4 * 35 + 2 * 512);
    assertThat(PairSort.fusedBytes(most, 128, 33, most))
        .isPositive()
        .isLessThanOrEqualTo(48 * 1024);
    assertThat(PairSort.fusedBytes(most + 1, 128, 1, most)).isEqualTo(-1);
    assertThat(PairSort.fusedBytes(64, 512, 65, most)).isEqualTo(-1);
  }

  @Test
  void sortLayoutHoldsEveryRouting() {
    PairSort.Layout l = PairSort.Layout.of(1000, 16, 4, 64, 16);
    assertThat(l.columns()).isEqualTo(5);
    assertThat(l.maxTiles()).isEqualTo(1000 / 64 + 16);
    assertThat(l.maxSegments()).isEqualTo(64);
    assertThat(l.maxShrinkTiles()).isEqualTo(1000 / 16 + 64);
    long[] offsets = {
      l.off(),
      l.pairOfRow(),
      l.rowOfPair(),
      l.tiles(),
      l.shrinkTiles(),
      l.segments(),
      l.segmentOfRow(),
      l.counts(),
      l.keyCounts(),
      l.summaries(),
      l.lists(),
      l.byteSize()
    };
    assertThat(offsets).isSorted().doesNotHaveDuplicates();
    assertThat(Arrays.stream(offsets)).allMatch(o -> o % 64 == 0);
    assertThat(l.summaries() - l.keyCounts()).isGreaterThanOrEqualTo(4 * 80);
    assertThat(l.byteSize() - l.lists()).isGreaterThanOrEqualTo(4 * 1000);
  }

  @Test
  void sortLayoutOfNoPairsAndOfTooMany() {
    assertThat(PairSort.Layout.of(0, 8, 0, 64, 16).maxTiles()).isZero();
    assertThat(PairSort.Layout.of(3, 8, 0, 64, 16).maxTiles()).isEqualTo(3);
    assertThatThrownBy(() -> PairSort.Layout.of(-1, 8, 0, 64, 16))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageContaining("pairs -1");
  }

  @Test
  void everyMethodAndFunctionHasItsOwnNumber() {
    assertThat(Arrays.stream(RoutingConfig.Scoring.values()).map(TopkKernel::code))
        .doesNotHaveDuplicates();
    assertThat(Arrays.stream(Activation.Kind.values()).map(ElementwiseKernels::code))
        .doesNotHaveDuplicates();
    assertThat(TopkKernel.sharedBytes(128, 8, 1)).isEqualTo(16 * (256 + 16 + 1));
  }
}
