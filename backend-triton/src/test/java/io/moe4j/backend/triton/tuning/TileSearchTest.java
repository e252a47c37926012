package io.moe4j.backend.triton.tuning;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.platform.ComputeCapability;
import io.moe4j.backend.triton.launch.TritonKernels;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.PtxVersion;
import io.moe4j.cuda.ops.ExpertKernels;
import io.moe4j.cuda.tuning.PlanRace;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.function.ToDoubleFunction;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** The search over the tiles that are really in the jar, with times that are made up. */
class TileSearchTest {
  private static final PtxVersion ANY = new PtxVersion(99, 0);

  static final TileSet HOPPER =
      TileSet.of(
          TritonKernels.library(),
          ExpertKernels.library(),
          new ComputeCapability(9, 0),
          ANY,
          new TileSet.Kind("bf16", "bf16", true, "silu"));

  static Problem problem(int tokens, int slots, int rank) {
    return new Problem(true, 3, true, tokens, 8, 64, 2048, 1024, slots, rank, false, false);
  }

  /** A card on which every plan takes as long as a function says. */
  private static final class FakeMeter implements PlanRace.Meter<TilePlan> {
    final List<TilePlan> looked = new ArrayList<>();
    final Set<TilePlan> again = new HashSet<>();
    private final ToDoubleFunction<TilePlan> micros;

    FakeMeter(ToDoubleFunction<TilePlan> micros) {
      this.micros = micros;
    }

    @Override
    public double look(TilePlan plan, double best) throws PlanRace.Rejected {
      looked.add(plan);
      return time(plan);
    }

    @Override
    public double lookAgain(TilePlan plan) throws PlanRace.Rejected {
      again.add(plan);
      return time(plan);
    }

    private double time(TilePlan plan) throws PlanRace.Rejected {
      double t = micros.applyAsDouble(plan);
      if (t < 0) {
        throw new PlanRace.Rejected("wrong");
      }
      return t;
    }
  }

  /** Each part adds its own time: the best of each part must be found. */
  @ParameterizedTest
  @CsvSource({
    "64, 16x32x64-tma-w4-s6, 16x128x64-tma-w4-s5",
    "64, 32x64x64-tma-w4-s4, 32x64x64-tma-w4-s5",
    "64, 64x128x64-tma-w4-s4, 64x64x64-ptr-w4-s3-any",
    "4096, 128x128x64-tma-w8-s4-tail, 128x128x64-tma-w4-s3-tail",
    "1, 16x64x128-tma-w4-s3, 16x32x256-ptr-w4-s4",
  })
  void findsTheBestOfEachPart(int tokens, String w13, String w2) throws Exception {
    if (tokens == 1) {
      assertThat(TileTable.naive(problem(tokens, 0, 0))).isTrue();
    }
    FakeMeter meter =
        new FakeMeter(p -> 100 - (p.w13().equals(w13) ? 30 : 0) - (p.w2().equals(w2) ? 20 : 0));
    PlanRace.Found<TilePlan> found =
        TileSearch.run(problem(tokens, 0, 0), HOPPER, meter, () -> true).orElseThrow();
    assertThat(found.plan().w13()).isEqualTo(w13);
    assertThat(found.plan().w2()).isEqualTo(w2);
    assertThat(found.micros()).isEqualTo(50);
    assertThat(found.dropped()).isEmpty();
    assertThat(found.measured()).isEqualTo(meter.looked.size());
  }

  /**
   * Every tile in the jar that fits is looked at, each plan once, and nothing that does not fit.
   */
  @Test
  void looksAtEveryTileThatFits() throws Exception {
    for (Problem p : List.of(problem(64, 0, 0), problem(512, 8, 16), problem(2, 8, 16))) {
      FakeMeter meter = new FakeMeter(plan -> 10);
      TileSearch.run(p, HOPPER, meter, () -> true);
      assertThat(meter.looked).doesNotHaveDuplicates().allMatch(plan -> HOPPER.has(p, plan));
      Set<String> w13 = new HashSet<>();
      Set<String> w2 = new HashSet<>();
      Set<Integer> shrinkRows = new HashSet<>();
      for (TilePlan plan : meter.looked) {
        w13.add(plan.w13());
        w2.add(plan.w2());
        shrinkRows.add(plan.shrinkRows());
      }
      boolean naive = TileTable.naive(p);
      assertThat(w13).hasSize(naive ? 6 : 12).isEqualTo(new HashSet<>(HOPPER.first(p, false)));
      assertThat(w2).hasSize(naive ? 6 : 14);
      assertThat(shrinkRows).hasSize(p.lora() && !naive ? 3 : 1);
      if (!naive) {
        assertThat(meter.looked).anyMatch(TilePlan::permute);
      }
    }
  }

  @Test
  void tilesWhoseStepDoesNotDivideAreLeftOut() throws Exception {
    Problem p = new Problem(true, 3, true, 64, 4, 128, 2880, 2880, 0, 0, false, false);
    FakeMeter meter = new FakeMeter(plan -> 10);
    TileSearch.run(p, HOPPER, meter, () -> true);
    assertThat(meter.looked)
        .isNotEmpty()
        .allMatch(plan -> TilePlan.any(plan.w13()) || 2880 % TilePlan.step(plan.w13()) == 0)
        .noneMatch(plan -> plan.w13().startsWith("16x32x256"));
  }

  @Test
  void findsTheBestShrinks() throws Exception {
    Problem p = problem(512, 8, 64);
    FakeMeter meter =
        new FakeMeter(plan ->
            100
                - (plan.shrinkRows() == 32 ? 10 : 0)
                - (plan.shrink13().ranks() == 32 ? 10 : 0)
                - (plan.shrink13().step() == 64 ? 5 : 0)
                - (plan.shrink2().ranks() == 64 ? 10 : 0));
    TilePlan plan = TileSearch.run(p, HOPPER, meter, () -> true).orElseThrow().plan();
    assertThat(plan.shrinkRows()).isEqualTo(32);
    assertThat(plan.shrink13().ranks()).isEqualTo(32);
    assertThat(plan.shrink13().step()).isEqualTo(64);
    assertThat(plan.shrink13().chunks()).isEqualTo(2 * 64 / 32);
    assertThat(plan.shrink2().ranks()).isEqualTo(64);
  }

  @Test
  void theBuiltInChoiceStaysUnlessAnotherGains() throws Exception {
    Problem p = problem(64, 0, 0);
    TilePlan builtIn = TileTable.choose(p);
    FakeMeter alike = new FakeMeter(plan -> plan.equals(builtIn) ? 100 : 99.5);
    PlanRace.Found<TilePlan> found = TileSearch.run(p, HOPPER, alike, () -> true).orElseThrow();
    assertThat(found.plan()).isEqualTo(builtIn);
    assertThat(found.micros()).isEqualTo(found.builtInMicros()).isEqualTo(100);
    FakeMeter faster = new FakeMeter(plan -> plan.equals(builtIn) ? 100 : 98);
    found = TileSearch.run(p, HOPPER, faster, () -> true).orElseThrow();
    assertThat(found.plan()).isNotEqualTo(builtIn);
    assertThat(found.builtInMicros()).isEqualTo(100);
    assertThat(faster.again).contains(builtIn, found.plan());
  }

  /** The fastest is wrong: it is reported, and the second fastest taken. */
  @Test
  void whatComputesSomethingElseIsDropped() throws Exception {
    String wrong = "32x64x64-tma-w4-s4";
    FakeMeter meter =
        new FakeMeter(plan ->
            plan.w13().equals(wrong) ? -1 : plan.w13().startsWith("64x64x64-tma") ? 50 : 100);
    PlanRace.Found<TilePlan> found =
        TileSearch.run(problem(64, 0, 0), HOPPER, meter, () -> true).orElseThrow();
    assertThat(found.plan().w13()).startsWith("64x64x64-tma");
    assertThat(found.dropped())
        .isNotEmpty()
        .allMatch(d -> d.startsWith(wrong) && d.endsWith("wrong"));
    FakeMeter allWrong = new FakeMeter(plan -> -1);
    assertThatThrownBy(() -> TileSearch.run(problem(64, 0, 0), HOPPER, allWrong, () -> true))
        .isInstanceOf(PlanRace.Rejected.class);
  }

  /** Right at first sight, wrong when everything is compared. */
  @Test
  void aFinalistCanStillBeDropped() throws Exception {
    String wrong = "32x64x64-tma-w4-s4";
    PlanRace.Meter<TilePlan> meter =
        new PlanRace.Meter<TilePlan>() {
          @Override
          public double look(TilePlan plan, double best) {
            return plan.w13().equals(wrong) ? 10 : 10.2 + plan.tileRows();
          }

          @Override
          public double lookAgain(TilePlan plan) throws PlanRace.Rejected {
            if (plan.w13().equals(wrong)) {
              throw new PlanRace.Rejected("row 17");
            }
            return look(plan, 0);
          }
        };
    PlanRace.Found<TilePlan> found =
        TileSearch.run(problem(64, 0, 0), HOPPER, meter, () -> true).orElseThrow();
    assertThat(found.plan().w13()).isNotEqualTo(wrong);
    assertThat(found.dropped()).isNotEmpty().allMatch(d -> d.contains("row 17"));
  }

  @Test
  void stopsWhenAsked() throws Exception {
    int[] left = {5};
    FakeMeter meter = new FakeMeter(plan -> 10);
    assertThat(TileSearch.run(problem(64, 0, 0), HOPPER, meter, () -> left[0]-- > 0)).isEmpty();
    assertThat(meter.looked).hasSize(5);
  }

  /** Cards with the portable set choose among its heights. */
  @Test
  void portableTiles() throws Exception {
    TileSet ada =
        TileSet.of(
            TritonKernels.library(),
            ExpertKernels.library(),
            new ComputeCapability(8, 9),
            ANY,
            new TileSet.Kind("f16", "f16", true, "any"));
    Problem p = new Problem(false, 3, true, 64, 8, 64, 2048, 1024, 8, 16, false, false);
    FakeMeter meter = new FakeMeter(plan -> plan.w13().startsWith("128") ? 5 : 10);
    PlanRace.Found<TilePlan> found = TileSearch.run(p, ada, meter, () -> true).orElseThrow();
    assertThat(found.plan().w13()).isEqualTo("128x64x64-ptr-w4-s3");
    assertThat(found.plan().w2()).isEqualTo("128x64x64-ptr-w4-s3");
  }

  @Test
  void mxfp4Tiles() throws Exception {
    TileSet set =
        TileSet.of(
            TritonKernels.library(),
            ExpertKernels.library(),
            new ComputeCapability(9, 0),
            ANY,
            new TileSet.Kind("mxfp4", "bf16", true, "any"));
    Problem p = new Problem(true, 3, true, 1024, 4, 128, 2880, 2880, 8, 16, false, true);
    FakeMeter meter = new FakeMeter(plan -> plan.w13().startsWith("64x64x64") ? 5 : 10);
    PlanRace.Found<TilePlan> found = TileSearch.run(p, set, meter, () -> true).orElseThrow();
    assertThat(found.plan().w13()).isEqualTo("64x64x64-ptr-w4-s3-any");
    assertThat(meter.looked).noneMatch(TilePlan::permute);
  }
}
