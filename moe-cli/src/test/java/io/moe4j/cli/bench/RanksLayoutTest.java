package io.moe4j.cli.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.JsonNode;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import java.util.List;
import org.junit.jupiter.api.Test;

/** What each rank has of a layer and its tokens, and how a report says so. */
class RanksLayoutTest {
  private static final BenchShape SHAPE = new BenchShape("small", 8, 6, 256, 512);
  private static final RanksLayout EXPERTS = new RanksLayout(2, 1, false);
  private static final RanksLayout BOTH = new RanksLayout(4, 2, true);

  @Test
  void aRankHasItsExpertsAndItsShareOfEach() {
    assertThat(EXPERTS.weights(SHAPE)).isEqualTo(new BenchShape("small", 4, 4, 256, 512));
    assertThat(EXPERTS.config(SHAPE)).isEqualTo(SHAPE);
    assertThat(BOTH.weights(SHAPE)).isEqualTo(new BenchShape("small", 4, 4, 256, 256));
    assertThat(BOTH.config(SHAPE)).isEqualTo(new BenchShape("small", 8, 6, 256, 256));
    MoeConfig third =
        RanksBench.config(BOTH.config(SHAPE), 16, new DeviceBench.Lora(16, 8), BOTH.parallel(3));
    assertThat(third.intermediateSize()).isEqualTo(256);
    assertThat(third.numExperts()).isEqualTo(8);
    assertThat(third.parallel()).isEqualTo(new ParallelConfig(2, 1, 2, 1, true));
    assertThat(third.parallel().rank()).isEqualTo(3);
  }

  @Test
  void aRankHasEvenlyManyTokensOrAll() {
    RanksLayout four = new RanksLayout(4, 2, false);
    assertThat(four.ownTokens(16)).isEqualTo(4);
    assertThat(four.firstToken(16, 3)).isEqualTo(12);
    assertThat(BOTH.ownTokens(15)).isEqualTo(15);
    assertThat(BOTH.firstToken(15, 3)).isZero();
    assertThat(RanksLayout.ONE.ownTokens(15)).isEqualTo(15);
    assertThat(RanksLayout.ONE.parallel(0)).isEqualTo(ParallelConfig.SINGLE);
  }

  @Test
  void onlyRanksThatShareTheExpertsWaitForTheOneWithMost() {
    DeviceBatch[] batches = DeviceBatch.rotating(SHAPE, 4);
    for (boolean rows : List.of(true, false)) {
      assertThat(new RanksLayout(2, 2, true).limit(batches, 8, rows)).isEqualTo(2);
      double ep = EXPERTS.limit(batches, 8, rows);
      assertThat(ep).isEqualTo(DeviceBatch.limit(batches, 8, 2, rows)).isBetween(1.0, 2.0);
      assertThat(BOTH.limit(batches, 8, rows)).isEqualTo(2 * ep);
    }
  }

  @Test
  void sizesThatDoNotDivideAreSaid() {
    assertThat(BOTH.whyNot(SHAPE)).isEmpty();
    assertThat(new RanksLayout(3, 1, false).whyNot(SHAPE))
        .contains("small has 8 experts, must divide by 3");
    assertThat(new RanksLayout(3, 3, false).whyNot(SHAPE))
        .contains("small has an intermediate size of 512, must divide by 3");
    assertThatThrownBy(() -> new RanksLayout(4, 3, false))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessage("tp is 3, must divide the number of ranks, 4");
  }

  private static RanksReport report(RanksLayout layout) {
    return new RanksReport(
        layout,
        "exchange: some",
        List.of(
            new RanksBench.Row(
                "small", 16, DeviceBench.Lora.NONE, 100, 50, 20, 5, 6, 7, 1.5, 1.75)));
  }

  @Test
  void aReportHasTheOperationsOfItsLayout() {
    assertThat(EXPERTS).hasToString("ep 2");
    assertThat(new RanksLayout(2, 2, false)).hasToString("tp 2");
    JsonNode row = report(EXPERTS).json().get("rows").get(0);
    assertThat(row.get("layout").asText()).isEqualTo("ep 2");
    assertThat(report(EXPERTS).json().get("exchange").asText()).isEqualTo("some");
    assertThat(row.get("gather_us").asDouble()).isEqualTo(5);
    assertThat(row.get("scatter_us").asDouble()).isEqualTo(6);
    assertThat(row.has("allreduce_us")).isFalse();
    assertThat(report(EXPERTS).markdown())
        .contains("| empty | gather | scatter |")
        .contains(
            "| small | 16 |  | ep 2 | 100.0 | 50.0 | 2.00x | 1.50x 1.75x | 20.0 | 5.0 | 6.0 |");

    row = report(BOTH).json().get("rows").get(0);
    assertThat(row.get("layout").asText()).isEqualTo("tp 2, ep 2, replicated tokens");
    assertThat(row.get("allreduce_us").asDouble()).isEqualTo(7);
    assertThat(row.has("gather_us")).isFalse();
    assertThat(row.has("scatter_us")).isFalse();
    assertThat(report(BOTH).markdown())
        .contains("| empty | all-reduce |")
        .contains("replicated tokens | 100.0 | 50.0 | 2.00x | 1.50x 1.75x | 20.0 | 7.0 |");
    for (RanksLayout layout : List.of(EXPERTS, BOTH)) {
      List<String> table =
          report(layout).markdown().lines().filter(l -> l.startsWith("|")).toList();
      assertThat(table.stream().map(l -> l.chars().filter(c -> c == '|').count()).distinct())
          .hasSize(1);
    }
  }
}
