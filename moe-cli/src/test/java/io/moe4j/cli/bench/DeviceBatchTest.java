package io.moe4j.cli.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import io.moe4j.api.tensor.Tensor;
import java.util.Arrays;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

final class DeviceBatchTest {
  @ParameterizedTest
  @ValueSource(ints = {1, 4, 16, 64, 256, 1024})
  void batchesTouchAsManyExpertsAsRoutingsDoOnAverage(int tokens) {
    for (BenchShape shape : BenchShape.DEVICE) {
      DeviceBatch[] batches = DeviceBatch.rotating(shape, tokens);
      double expected = 0; // one expert at a time: it is left out by none of T independent tokens
      for (int e = 0; e < shape.numExperts(); e++) {
        double untouched = 1;
        for (int t = 0; t < tokens; t++) {
          untouched *= (double) (shape.numExperts() - shape.topK()) / shape.numExperts();
        }
        expected += 1 - untouched;
      }
      double touched = 0;
      for (DeviceBatch batch : batches) {
        int[] ids = ints(batch.ids(tokens));
        touched += (double) Arrays.stream(ids).distinct().count() / batches.length;
        for (int t = 0; t < tokens; t++) {
          int[] of = Arrays.copyOfRange(ids, t * shape.topK(), (t + 1) * shape.topK());
          assertThat(of).doesNotHaveDuplicates();
          assertThat(Arrays.stream(of)).allMatch(e -> e >= 0 && e < shape.numExperts());
        }
      }
      assertThat(touched)
          .as("%s, %s batches", shape.name(), batches.length)
          .isCloseTo(expected, within(0.51 / batches.length));
    }
  }

  /** What another benchmark drew: few experts, many, and batches that share some. */
  @Test
  void drawsComeCloseToWhatIsAskedFor() {
    BenchShape shape = new BenchShape("some", 8, 2, 8, 8);
    for (double wanted : new double[] {5.2, 6.1}) {
      Draws draws = new Draws(16, Map.of(4, wanted), 0);
      DeviceBatch[] batches = DeviceBatch.rotating(shape, 4, draws);
      assertThat(batches).hasSize(16);
      double touched = 0;
      for (DeviceBatch b : batches) {
        touched += Arrays.stream(ints(b.ids(4))).distinct().count() / 16.0;
      }
      assertThat(touched).isCloseTo(wanted, within(0.051));
      assertThat(DeviceBatch.meanExperts(batches)).isEqualTo(touched);
    }
    // 8 single tokens choose 2 of 16 experts each: by default all 16, drawn apart some alike.
    BenchShape more = new BenchShape("more", 16, 2, 8, 8);
    DeviceBatch[] ones = DeviceBatch.rotating(more, 1, new Draws(8, Map.of(), 0));
    assertThat(Arrays.stream(ones).flatMapToInt(b -> Arrays.stream(ints(b.ids(1)))).distinct())
        .hasSizeLessThan(16);
    assertThat(
            Arrays.stream(DeviceBatch.rotating(more, 1))
                .flatMapToInt(b -> Arrays.stream(ints(b.ids(1))))
                .distinct())
        .hasSize(16);
    int[] first = ints(DeviceBatch.rotating(shape, 64)[0].ids(64));
    assertThat(ints(DeviceBatch.rotating(shape, 64, Draws.DEFAULT)[0].ids(64))).isEqualTo(first);
    assertThat(ints(DeviceBatch.rotating(shape, 64, new Draws(0, Map.of(), 1))[0].ids(64)))
        .isNotEqualTo(first);
  }

  /** By hand: all ranks do what the busiest does in each batch. */
  @ParameterizedTest
  @ValueSource(ints = {16, 256})
  void ranksWaitForTheBusiest(int tokens) {
    BenchShape shape = new BenchShape("some", 12, 2, 8, 8);
    DeviceBatch[] batches = DeviceBatch.rotating(shape, tokens);
    for (boolean rows : new boolean[] {false, true}) {
      double work = 0;
      double waited = 0;
      for (DeviceBatch batch : batches) {
        int[] ids = ints(batch.ids(tokens));
        long[] of = new long[3];
        for (int r = 0; r < of.length; r++) {
          int from = 4 * r;
          var mine = Arrays.stream(ids).filter(e -> e >= from && e < from + 4);
          of[r] = rows ? mine.count() : mine.distinct().count();
        }
        work += of[0] + of[1] + of[2];
        waited += Math.max(of[0], Math.max(of[1], of[2]));
      }
      assertThat(DeviceBatch.limit(batches, 12, 3, rows)).isEqualTo(work / waited).isLessThan(3.01);
    }
  }

  private static int[] ints(Tensor ids) {
    int[] all = new int[Math.toIntExact(ids.elementCount())];
    int columns = Math.toIntExact(ids.size(1));
    Arrays.setAll(all, i -> (int) ids.get(i / columns, i % columns));
    return all;
  }
}
