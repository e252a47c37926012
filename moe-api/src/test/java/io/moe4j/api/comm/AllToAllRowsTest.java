package io.moe4j.api.comm;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.tensor.Tensor;
import org.junit.jupiter.api.Test;

class AllToAllRowsTest {
  private static final Tensor FIVE = Tensor.ofFloats(new float[10], 5, 2);
  private static final Tensor SIX = Tensor.ofFloats(new float[12], 6, 2);

  private static AllToAllRows of(Tensor send, long[] sendRows, Tensor receive, long[] receiveRows) {
    return AllToAllRows.of(1, 3, send, sendRows, receive, receiveRows);
  }

  @Test
  void rowsOfRanksFollowEachOther() {
    AllToAllRows rows = of(FIVE, new long[] {3, 2, 0}, SIX, new long[] {0, 2, 3});
    assertThat(new long[] {rows.sendFrom(0), rows.sendFrom(1), rows.sendFrom(2), rows.sendFrom(3)})
        .containsExactly(0, 3, 5, 5);
    assertThat(new long[] {rows.receiveFrom(1), rows.receiveFrom(2), rows.receiveFrom(3)})
        .containsExactly(0, 2, 5);
  }

  @Test
  void refusesWhatDoesNotFit() {
    long[] good = {3, 2, 0};
    assertThatThrownBy(() -> of(FIVE, new long[] {5, 0}, SIX, good))
        .hasMessage("sendRows has 2 entries, must have one for each of 3 ranks");
    assertThatThrownBy(() -> of(FIVE, good, SIX, new long[] {5, 2, -1}))
        .hasMessage("receiveRows[2] is -1, must not be negative");
    assertThatThrownBy(() -> of(SIX, good, SIX, good))
        .hasMessageContaining("rows of one shape, 5 and at least 5 of them");
    assertThatThrownBy(() -> of(FIVE, good, Tensor.ofFloats(new float[8], 4, 2), good))
        .hasMessageContaining("rows of one shape, 5 and at least 5 of them");
    assertThatThrownBy(() -> of(FIVE, good, Tensor.ofFloats(new float[15], 5, 3), good))
        .hasMessageContaining("of one dtype with rows of one shape");
    assertThatThrownBy(() -> of(FIVE, good, Tensor.ofInts(new int[10], 5, 2), good))
        .hasMessageContaining("of one dtype with rows of one shape");
    assertThatThrownBy(() -> of(FIVE, good, SIX, new long[] {3, 1, 0}))
        .hasMessage("rank 1 sends itself 2 rows and expects 1");
    assertThatThrownBy(() -> of(FIVE, new long[] {Long.MAX_VALUE, 1, 0}, SIX, new long[] {0, 1, 0}))
        .isInstanceOf(ArithmeticException.class);
  }
}
