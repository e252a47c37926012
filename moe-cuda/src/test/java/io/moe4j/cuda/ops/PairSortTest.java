package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.Gpu;
import io.moe4j.cuda.GpuTest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

@GpuTest
class PairSortTest {
  private static final int TILE = 32;
  private static final int SHRINK = 16;

  /** How tokens choose experts. */
  enum Spread {
    UNIFORM,
    ALL_ON_ONE,
    SKEWED
  }

  record Case(int tokens, int k, int experts, int slots, Spread spread, boolean mapped) {}

  static Stream<Case> cases() {
    return Stream.of(
        new Case(1, 8, 128, 0, Spread.UNIFORM, false),
        new Case(1, 1, 1, 3, Spread.UNIFORM, false),
        new Case(64, 8, 128, 32, Spread.UNIFORM, false),
        new Case(333, 3, 20, 5, Spread.SKEWED, true),
        new Case(1024, 8, 128, 32, Spread.UNIFORM, false),
        new Case(1024, 8, 60, 0, Spread.SKEWED, true),
        new Case(1024, 8, 128, 8, Spread.ALL_ON_ONE, false),
        // More than one launch: many pairs, or many keys.
        new Case(4099, 4, 40, 7, Spread.SKEWED, true),
        new Case(8192, 8, 128, 32, Spread.UNIFORM, false),
        new Case(8192, 8, 128, 32, Spread.ALL_ON_ONE, false),
        new Case(8192, 8, 64, 0, Spread.UNIFORM, false),
        // More than the 65536 pairs of one round.
        new Case(20_001, 7, 33, 9, Spread.SKEWED, true),
        new Case(100, 8, 512, 100, Spread.UNIFORM, false));
  }

  @ParameterizedTest
  @MethodSource("cases")
  void sortsLikeAStableSortOnTheHost(Case c) {
    Random random = new Random(c.hashCode());
    int pairs = c.tokens * c.k;
    int global = c.mapped ? c.experts * 2 : c.experts;
    int[] map = c.mapped ? map(random, global, c.experts) : null;
    int[] ids = IntStream.range(0, pairs).map(p -> id(random, c.spread, global)).toArray();
    // What does not exist anywhere: no expert, and ids out of range.
    for (int p = 0; p < pairs; p += 17) {
      ids[p] = p % 3 == 0 ? -1 : p % 3 == 1 ? global : Integer.MAX_VALUE;
    }
    int[] slots = IntStream.range(0, c.tokens).map(t -> random.nextInt(c.slots + 1) - 1).toArray();
    int[] active = IntStream.range(0, Math.max(1, c.slots)).map(s -> s % 4 == 3 ? 0 : 1).toArray();

    int columns = c.slots + 1;
    int[] key = new int[pairs];
    for (int p = 0; p < pairs; p++) {
      int e = ids[p] < 0 || ids[p] >= global ? -1 : map == null ? ids[p] : map[ids[p]];
      int slot = slots[p / c.k];
      key[p] = e < 0 ? -1 : e * columns + (slot >= 0 && active[slot] != 0 ? slot + 1 : 0);
    }
    List<Integer> order =
        IntStream.range(0, pairs)
            .filter(p -> key[p] >= 0)
            .boxed()
            .sorted(Comparator.comparingInt(p -> key[p]))
            .toList();

    PairSort.Layout l = PairSort.Layout.of(pairs, c.experts, c.slots, TILE, SHRINK);
    try (Gpu gpu = new Gpu()) {
      Tensor memory = gpu.empty(DType.I32, l.byteSize() / 4);
      ExpertRouting routing =
          new ExpertRouting(
              gpu.ints(ids, c.tokens, c.k),
              gpu.empty(DType.F32, c.tokens, c.k),
              map == null ? null : gpu.ints(map, global));
      Tensor mapping = c.slots == 0 ? null : gpu.ints(slots, c.tokens);
      Tensor activeSlots = c.slots == 0 ? null : gpu.ints(active, c.slots);
      int[] rowOfPair = new int[pairs];
      Arrays.fill(rowOfPair, -1);
      for (int r = 0; r < order.size(); r++) {
        rowOfPair[order.get(r)] = r;
      }
      int[] off = new int[c.experts * columns + 1];
      order.forEach(p -> off[key[p] + 1]++);
      Arrays.parallelPrefix(off, Integer::sum);

      // One launch where it fits, and two.
      for (int fusedPairs : new int[] {PairSort.FUSED_PAIRS, 0}) {
        gpu.device.fill(memory, 0xff, gpu.stream);
        new PairSort(gpu.device, c.slots, fusedPairs)
            .run(routing, mapping, activeSlots, l, memory.deviceAddress(), gpu.stream);
        int[] all = gpu.ints(memory);
        assertThat(part(all, l.pairOfRow(), order.size()))
            .isEqualTo(order.stream().mapToInt(p -> p).toArray());
        assertThat(part(all, l.rowOfPair(), pairs)).isEqualTo(rowOfPair);
        assertThat(part(all, l.off(), off.length)).isEqualTo(off);
        checkTiles(all, l, off, columns, order.size());
      }
    }
  }

  private static void checkTiles(int[] all, PairSort.Layout l, int[] off, int columns, int rows) {
    List<Integer> tiles = new ArrayList<>();
    List<Integer> shrink = new ArrayList<>();
    List<Integer> segments = new ArrayList<>();
    int[] segmentOfRow = new int[rows];
    Arrays.fill(segmentOfRow, -1);
    for (int e = 0; e < l.experts(); e++) {
      int begin = off[e * columns];
      int end = off[(e + 1) * columns];
      int firstLora = columns == 1 ? end : off[e * columns + 1];
      for (int r = begin; r < end; r += TILE) {
        tiles.addAll(List.of(e, r, Math.min(r + TILE, end), Math.max(r, firstLora)));
      }
      for (int a = 1; a < columns; a++) {
        int r0 = off[e * columns + a];
        int r1 = off[e * columns + a + 1];
        if (r0 < r1) {
          Arrays.fill(segmentOfRow, r0, r1, segments.size());
          segments.add(a - 1);
        }
        for (int r = r0; r < r1; r += SHRINK) {
          shrink.addAll(List.of(e, r, Math.min(r + SHRINK, r1), a - 1));
        }
      }
    }
    assertThat(part(all, l.counts(), 4))
        .containsExactly(tiles.size() / 4, shrink.size() / 4, rows, segments.size());
    assertThat(tiles.size() / 4).isLessThanOrEqualTo(l.maxTiles());
    assertThat(shrink.size() / 4).isLessThanOrEqualTo(l.maxShrinkTiles());
    assertThat(segments.size()).isLessThanOrEqualTo(l.maxSegments());
    assertThat(part(all, l.tiles(), tiles.size())).isEqualTo(array(tiles));
    assertThat(part(all, l.shrinkTiles(), shrink.size())).isEqualTo(array(shrink));
    assertThat(part(all, l.segments(), segments.size())).isEqualTo(array(segments));
    assertThat(part(all, l.segmentOfRow(), rows)).isEqualTo(segmentOfRow);
  }

  private static int[] array(List<Integer> list) {
    return list.stream().mapToInt(i -> i).toArray();
  }

  private static int[] part(int[] all, long byteOffset, int n) {
    int at = (int) (byteOffset / 4);
    return Arrays.copyOfRange(all, at, at + n);
  }

  private static int id(Random random, Spread spread, int experts) {
    return switch (spread) {
      case UNIFORM -> random.nextInt(experts);
      case ALL_ON_ONE -> experts / 2;
      case SKEWED -> (int) (experts * Math.pow(random.nextDouble(), 3));
    };
  }

  private static int @Nullable [] map(Random random, int global, int local) {
    int[] map = new int[global];
    Arrays.fill(map, -1);
    int[] chosen = random.ints(0, global).distinct().limit(local).toArray();
    for (int i = 0; i < local; i++) {
      map[chosen[i]] = i;
    }
    return map;
  }
}
