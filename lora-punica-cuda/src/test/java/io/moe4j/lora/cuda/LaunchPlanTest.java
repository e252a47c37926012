package io.moe4j.lora.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatExceptionOfType;

import io.moe4j.api.MoeException;
import io.moe4j.lora.cuda.LaunchPlan.Card;
import io.moe4j.lora.cuda.LaunchPlan.Problem;
import org.junit.jupiter.api.Test;

/** The choice of path and launch, without a device. */
class LaunchPlanTest {
  private static final Card H200 = new Card(132, 225 * 1024, true);
  private static final Card AMPERE = new Card(108, 161 * 1024, false);
  private static final Card SMALL = new Card(20, 97 * 1024, false);

  private static Problem qwen(int tokens, int adapters, int rank) {
    return new Problem(tokens * 8, 128, adapters, adapters, 2 * rank, 2048, 768, 2, false);
  }

  @Test
  void fewPairsAreNotSorted() {
    LaunchPlan plan = LaunchPlan.of(qwen(1, 8, 16), H200, LoraPath.AUTO);
    assertThat(plan.path()).isEqualTo(LoraPath.SMALL_BATCH);
    assertThat(plan.sorted()).isFalse();
    assertThat(plan.tiles()).isEqualTo(8);
    assertThat(plan.cluster() * plan.tiles() * plan.parts()).isBetween(64, 264);
  }

  @Test
  void manyPairsAreSorted() {
    LaunchPlan plan = LaunchPlan.of(qwen(4096, 8, 16), H200, LoraPath.AUTO);
    assertThat(plan.sorted()).isTrue();
    assertThat(plan.path()).isEqualTo(LoraPath.ONE_SHOT);
    assertThat(plan.cluster()).isOne();
    assertThat(plan.tileRows()).isEqualTo(64);
    assertThat(plan.tiles()).isEqualTo(32768 / 64 + 1024);
  }

  /**
   * Both calls of a layer have tiles of the same height, so that the second uses the first's sort.
   */
  @Test
  void bothTargetsShareTheSort() {
    for (int tokens : new int[] {16, 64, 256, 1024, 4096, 8192}) {
      for (int adapters : new int[] {1, 8, 32}) {
        Problem w13 = qwen(tokens, adapters, 64);
        Problem w2 = new Problem(tokens * 8, 128, adapters, adapters, 64, 768, 2048, 1, false);
        assertThat(LaunchPlan.of(w2, H200, LoraPath.ONE_SHOT).tileRows())
            .isEqualTo(LaunchPlan.of(w13, H200, LoraPath.ONE_SHOT).tileRows());
      }
    }
  }

  @Test
  void everyRankHasAPath() {
    for (Card card : new Card[] {H200, AMPERE, SMALL}) {
      for (int rank = 1; rank <= 1024; rank++) {
        int columns = 2 * Math.ceilDiv(rank, 16) * 16;
        for (int pairs : new int[] {1, 100, 65536}) {
          Problem p = new Problem(pairs, 8, 4, 4, columns, 512, 256, 2, false);
          for (LoraPath wish : LoraPath.values()) {
            LaunchPlan plan = LaunchPlan.of(p, card, wish);
            assertThat(plan.path()).isNotEqualTo(LoraPath.AUTO);
            if (plan.path() == LoraPath.GENERAL) {
              assertThat(rank).as("only huge ranks on small cards").isGreaterThan(512);
              continue;
            }
            assertThat(plan.columns()).isGreaterThanOrEqualTo(columns);
            assertThat(plan.sharedBytes()).isBetween(1, card.sharedBytes());
            assertThat(plan.shrinkSharedBytes()).isBetween(0, card.sharedBytes());
            assertThat(plan.tileRows()).isIn(16, 32, 64);
            assertThat(plan.cluster()).isIn(1, 2, 4, 8);
            if (plan.path() == LoraPath.TWO_KERNELS) {
              assertThat(plan.chunks() * plan.rankTiles() * 8).isGreaterThanOrEqualTo(columns);
              assertThat(plan.rankTiles()).isIn(4, 16);
              assertThat(plan.partFloats(pairs)).isEqualTo((long) plan.splits() * pairs * columns);
            } else {
              assertThat(plan.rankTiles() * 8).isGreaterThanOrEqualTo(columns);
              assertThat(plan.rankTiles()).isIn(4, 8, 16);
              assertThat(card.clusters() || plan.cluster() == 1).isTrue();
            }
          }
        }
      }
    }
  }

  @Test
  void aWishIsHonouredWhereItCanBe() {
    assertThat(LaunchPlan.of(qwen(1, 1, 16), H200, LoraPath.ONE_SHOT).path())
        .isEqualTo(LoraPath.ONE_SHOT);
    assertThat(LaunchPlan.of(qwen(512, 1, 16), H200, LoraPath.SMALL_BATCH).path())
        .isEqualTo(LoraPath.SMALL_BATCH);
    assertThat(LaunchPlan.of(qwen(512, 1, 16), H200, LoraPath.TWO_KERNELS).path())
        .isEqualTo(LoraPath.TWO_KERNELS);
    assertThat(LaunchPlan.of(qwen(512, 1, 256), H200, LoraPath.ONE_SHOT).path())
        .as("too many ranks for one launch")
        .isEqualTo(LoraPath.TWO_KERNELS);
  }

  @Test
  void moreTilesThanPairsAreNeverLaunched() {
    for (int tokens = 1; tokens < 300; tokens++) {
      LaunchPlan plan = LaunchPlan.of(qwen(tokens, 32, 16), H200, LoraPath.ONE_SHOT);
      assertThat(plan.tiles()).isBetween(1, tokens * 8);
    }
  }

  @Test
  void laterAdaptersHaveRoom() {
    Problem one = new Problem(8192, 128, 1, 32, 32, 2048, 768, 2, false);
    LaunchPlan plan = LaunchPlan.of(one, H200, LoraPath.AUTO);
    assertThat(plan.tiles()).isEqualTo(8192 / plan.tileRows() + 4096);
  }

  @Test
  void propertyNamesAPath() {
    String before = System.getProperty(LoraPath.PROPERTY);
    try {
      for (LoraPath p : LoraPath.values()) {
        System.setProperty(LoraPath.PROPERTY, p.text());
        assertThat(LoraPath.ofProperty()).isEqualTo(p);
      }
      System.setProperty(LoraPath.PROPERTY, "fastest");
      assertThatExceptionOfType(MoeException.class)
          .isThrownBy(LoraPath::ofProperty)
          .withMessageContaining("\"fastest\"")
          .withMessageContaining("two-kernels");
    } finally {
      if (before == null) {
        System.clearProperty(LoraPath.PROPERTY);
      } else {
        System.setProperty(LoraPath.PROPERTY, before);
      }
    }
  }
}
