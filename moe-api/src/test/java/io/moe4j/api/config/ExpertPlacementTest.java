package io.moe4j.api.config;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.util.List;
import org.junit.jupiter.api.Test;

class ExpertPlacementTest {
  private static final ExpertPlacement TWICE =
      ExpertPlacement.of(
          List.of(
              ExpertMap.of(0, 1, -1, 2), ExpertMap.of(-1, 0, 1, 2), ExpertMap.of(-1, -1, -1, 0)));

  @Test
  void linearHasEveryExpertOnce() {
    ExpertPlacement p = ExpertPlacement.linear(5, 2);
    assertThat(p.isRedundant()).isFalse();
    assertThat(p.map(0)).isEqualTo(ExpertMap.linear(5, 2, 0));
    assertThat(p.rank(2, 1)).isZero();
    assertThat(p.rank(3, 0)).isEqualTo(1);
    assertThat(p).isEqualTo(ExpertPlacement.linear(5, 2)).isNotEqualTo(TWICE);
  }

  @Test
  void theTokensOwnRankComesFirstThenCopiesTakeTurns() {
    assertThat(TWICE.isRedundant()).isTrue();
    assertThat(TWICE.copies(1)).containsExactly(0, 1);
    assertThat(TWICE.rank(1, 0)).isZero();
    assertThat(TWICE.rank(1, 1)).isEqualTo(1);
    assertThat(TWICE.rank(1, 2)).isZero(); // the third token rank, of two copies
    assertThat(TWICE.rank(3, 2)).isEqualTo(2);
    assertThat(TWICE.rank(0, 2)).isZero();
    assertThat(TWICE).hasToString("ExpertPlacement[[0, 1, -1, 2], [-1, 0, 1, 2], [-1, -1, -1, 0]]");
  }

  @Test
  void mapsThatAreNoPlacementAreRefused() {
    assertThatThrownBy(
            () -> ExpertPlacement.of(List.of(ExpertMap.of(0, -1, -1), ExpertMap.of(-1, 0, -1))))
        .hasMessage("expert 2 is on no rank");
    assertThatThrownBy(() -> ExpertPlacement.of(List.of(ExpertMap.of(0), ExpertMap.of(0, 1))))
        .hasMessage("the map of rank 1 covers 2 experts, that of rank 0 1");
    assertThatThrownBy(
            () -> ExpertPlacement.of(List.of(ExpertMap.linear(2, 2, 1), ExpertMap.linear(2, 2, 0))))
        .hasMessage("the map of rank 0 of 2 was made for rank 1 of 2");
    assertThatThrownBy(() -> ExpertPlacement.of(List.of())).hasMessageContaining("maps is empty");
  }

  @Test
  void aConfigTakesItsMapFromIt() {
    MoeConfig.Builder b = MoeConfig.builder(8, 4, 4, 2);
    MoeConfig config = b.parallel(ParallelConfig.expert(3, 1)).placement(TWICE).build();
    assertThat(config.expertMap()).contains(TWICE.map(1));
    assertThat(config.placement()).contains(TWICE);
    MoeConfig next = config.toBuilder().parallel(ParallelConfig.expert(3, 2)).build();
    assertThat(next.expertMap()).contains(TWICE.map(2));
    assertThat(config).isEqualTo(config.toBuilder().build()).isNotEqualTo(next);
    assertThat(next.toBuilder().noExpertMap().build().placement())
        .contains(ExpertPlacement.linear(4, 3));
    assertThat(b.parallel(ParallelConfig.SINGLE).noExpertMap().build().placement()).isEmpty();
  }

  @Test
  void aConfigThatContradictsItIsRefused() {
    MoeConfig.Builder b = MoeConfig.builder(8, 4, 4, 2).placement(TWICE);
    assertThatThrownBy(b::build).hasMessageContaining("placement is of 4 experts on 3 ranks");
    b.parallel(ParallelConfig.expert(3, 0)).expertMap(ExpertMap.of(0, 1, 2, -1));
    assertThatThrownBy(b::build)
        .hasMessageContaining("expertMap is not what placement says of expert-parallel rank 0");
  }
}
