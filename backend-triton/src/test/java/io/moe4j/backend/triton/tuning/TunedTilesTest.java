package io.moe4j.backend.triton.tuning;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.tuning.PlanRace;
import io.moe4j.cuda.tuning.TunedTable;
import java.util.List;
import org.junit.jupiter.api.Test;

/** Which entry serves which forward. */
class TunedTilesTest {
  private static final Problem LAYER = TileSearchTest.problem(1, 0, 0);
  private static final String SHORT = "16x32x64-tma-w4-s6";
  private static final String TALL = "64x128x64-tma-w4-s4";

  private static TileEntry entry(int tokens, int adapters, int rank, String w13, String w2) {
    TileEntry.Width w13Width =
        adapters == 0 ? TileEntry.Width.NONE : new TileEntry.Width(32, 64, 2);
    TileEntry.Width w2Width =
        adapters == 0 ? TileEntry.Width.NONE : new TileEntry.Width(16, 128, 1);
    return new TileEntry(
        tokens, adapters, rank, w13, w2, false, false, 8, 16, w13Width, w2Width, 1, 2);
  }

  private static TunedTiles tiles(TileEntry... entries) {
    TunedTable.Key key = new TunedTable.Key("", "", "", "", "", 0, 0, 0, 0);
    return new TunedTiles(
        new TunedTable<>(key, List.of(entries)).entries(), TileSearchTest.HOPPER, LAYER);
  }

  private static Problem forward(int tokens, int slots, int rank) {
    return TileSearchTest.problem(tokens, slots, rank);
  }

  @Test
  void theNearestEntryServes() {
    TunedTiles t =
        tiles(
            entry(64, 0, 0, SHORT, "16x32x64-ptr-w4-s8"),
            entry(512, 0, 0, TALL, "64x64x64-tma-w4-s5"));
    assertThat(t.size()).isEqualTo(2);
    for (int tokens : new int[] {32, 64, 65, 128}) {
      assertThat(t.choose(forward(tokens, 0, 0)).w13()).isEqualTo(SHORT);
      assertThat(t.choose(forward(tokens, 0, 0)).w2()).isEqualTo("16x32x64-ptr-w4-s8");
    }
    assertThat(t.choose(forward(1024, 0, 0)).w2()).isEqualTo("64x64x64-tma-w4-s5");
    for (Problem far :
        List.of(forward(31, 0, 0), forward(200, 0, 0), forward(1025, 0, 0), forward(64, 8, 16))) {
      assertThat(t.choose(far)).isEqualTo(TileTable.choose(far));
    }
  }

  @Test
  void ofTwoAsNearTheSmallerServes() {
    TunedTiles t =
        tiles(
            entry(256, 0, 0, TALL, "64x64x64-tma-w4-s5"),
            entry(64, 0, 0, SHORT, "16x32x64-ptr-w4-s8"));
    assertThat(t.choose(forward(128, 0, 0)).w13()).isEqualTo(SHORT);
  }

  @Test
  void adaptersAndRankCount() {
    TunedTiles t = tiles(entry(64, 8, 16, SHORT, "16x32x64-ptr-w4-s8"));
    TilePlan plan = t.choose(forward(100, 12, 32));
    assertThat(plan.w13()).isEqualTo(SHORT);
    assertThat(plan.shrink13()).isEqualTo(new Shrink(32, 64, false, 2, 2));
    assertThat(plan.shrink2()).isEqualTo(new Shrink(16, 128, false, 2, 1));
    for (Problem far :
        List.of(forward(64, 0, 0), forward(64, 32, 16), forward(64, 8, 64), forward(200, 8, 16))) {
      assertThat(t.choose(far)).isEqualTo(TileTable.choose(far));
    }
  }

  /** 64 experts of 8 each: up to two tokens run as single pairs, which other tiles are for. */
  @Test
  void singlePairsAreServedByTheirOwn() {
    TunedTiles t =
        tiles(
            entry(1, 0, 0, "16x64x128-tma-w4-s3", "16x32x64-ptr-w4-s8"),
            entry(4, 0, 0, SHORT, "16x128x64-tma-w4-s5"));
    assertThat(t.choose(forward(1, 0, 0)).w13()).isEqualTo("16x64x128-tma-w4-s3");
    assertThat(t.choose(forward(1, 0, 0)).naive()).isTrue();
    assertThat(t.choose(forward(2, 0, 0))).isEqualTo(TileTable.choose(forward(2, 0, 0)));
    assertThat(t.choose(forward(3, 0, 0)).w13()).isEqualTo(SHORT);
  }

  /** The built-in rules follow the sizes closer than the entry that confirms them. */
  @Test
  void whereTheTableWasBestItIsAsked() {
    Problem measured = forward(64, 0, 0);
    TunedTiles t = tiles(TileEntry.of(measured, TileTable.choose(measured), 1, 1));
    assertThat(t.size()).isEqualTo(1);
    assertThat(TileTable.choose(forward(128, 0, 0))).isNotEqualTo(TileTable.choose(measured));
    assertThat(t.choose(forward(128, 0, 0))).isEqualTo(TileTable.choose(forward(128, 0, 0)));
  }

  /** Whatever a file says: only plans that the jar has kernels for, and that fit the layer. */
  @Test
  void entriesWithoutKernelsAreIgnored() {
    TileEntry.Width fits = new TileEntry.Width(32, 64, 2);
    TileEntry good = entry(64, 8, 16, SHORT, "16x32x64-ptr-w4-s8");
    for (TileEntry bad :
        List.of(
            entry(64, 0, 0, "16x16x16-ptr-w4-s6", "16x32x64-ptr-w4-s8"),
            entry(64, 0, 0, SHORT, "64x64x64-tma-w4-s5"),
            entry(64, 0, 0, "nonsense", "16x32x64-ptr-w4-s8"),
            entry(64, 0, 0, "16x99999999999x64-ptr", "16x32x64-ptr-w4-s8"),
            entry(64, 0, 0, "", ""),
            entry(0, 0, 0, SHORT, "16x32x64-ptr-w4-s8"),
            entry(64, 0, 16, SHORT, "16x32x64-ptr-w4-s8"),
            entry(64, 8, 0, SHORT, "16x32x64-ptr-w4-s8"),
            entry(1 << 24, 8, 16, SHORT, "16x32x64-ptr-w4-s8"),
            entry(1, 0, 0, TALL, "64x64x64-tma-w4-s5"),
            with(good, 16, new TileEntry.Width(48, 64, 2), fits),
            with(good, 16, fits, new TileEntry.Width(16, 64, 3)),
            with(good, 16, new TileEntry.Width(32, 64, 64), new TileEntry.Width(16, 64, 1)),
            with(good, 16, new TileEntry.Width(0, 0, 0), new TileEntry.Width(16, 64, 1)),
            with(good, 24, fits, new TileEntry.Width(16, 64, 1)))) {
      TunedTiles t = tiles(bad, good); // of two entries of the same sizes the last counts
      assertThat(t.size()).as("%s", bad).isEqualTo(1);
      assertThat(tiles(bad).size()).as("%s", bad).isZero();
    }
    assertThat(tiles(good).size()).isEqualTo(1);
  }

  private static TileEntry with(
      TileEntry e, int rows, TileEntry.Width first, TileEntry.Width second) {
    return new TileEntry(
        e.tokens(),
        e.adapters(),
        e.rank(),
        e.w13(),
        e.w2(),
        false,
        false,
        8,
        rows,
        first,
        second,
        1,
        2);
  }

  /** 2880 is no multiple of 128 or 256: such tiles of another layer's entry are not taken. */
  @Test
  void entriesThatDoNotFitTheLayerAreIgnored() {
    Problem layer = new Problem(true, 3, true, 1, 4, 128, 2880, 2880, 0, 0, false, false);
    assertThat(
            new TunedTiles(
                    List.of(entry(64, 0, 0, "32x64x128-tma-w4-s3", "32x64x64-tma-w4-s5")),
                    TileSearchTest.HOPPER,
                    layer)
                .size())
        .isZero();
  }

  /** What the search can find can be written and used: there and back. */
  @Test
  void everyPlanOfASearchServes() throws Exception {
    for (Problem p : List.of(forward(1, 0, 0), forward(1, 8, 16), forward(300, 8, 64))) {
      List<TilePlan> all = new java.util.ArrayList<>();
      TileSearch.run(
          p,
          TileSearchTest.HOPPER,
          new PlanRace.Meter<TilePlan>() {
            @Override
            public double look(TilePlan plan, double best) {
              all.add(plan);
              return 1;
            }

            @Override
            public double lookAgain(TilePlan plan) {
              return 1;
            }
          },
          () -> true);
      for (TilePlan plan : all) {
        TunedTiles t = tiles(TileEntry.of(p, plan, 1, 2));
        assertThat(t.size()).isEqualTo(1);
        assertThat(t.choose(p)).isEqualTo(plan);
      }
    }
  }
}
