package io.moe4j.backend.marlin;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.QuantScheme;
import io.moe4j.cuda.tuning.PlanRace;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.function.ToDoubleFunction;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/** The search over the plans that the jar has kernels for, with times that are made up. */
class PlanSearchTest {
  static final int[] QWEN3 = {128, 8, 2048, 768};
  private static final int[] MIXTRAL = {8, 2, 4096, 14336};
  private static final QuantScheme INT4 = QuantScheme.int4(128);

  private static MarlinPlan.Problem problem(int[] layer, int tokens, int rank) {
    return MarlinPlanTest.problem(INT4, 9, layer, tokens, rank, false);
  }

  /** A card on which every plan takes as long as a function says; less than 0 = it is wrong. */
  private static final class FakeMeter implements PlanRace.Meter<MarlinPlan> {
    final List<MarlinPlan> looked = new ArrayList<>();
    private final ToDoubleFunction<MarlinPlan> micros;

    FakeMeter(ToDoubleFunction<MarlinPlan> micros) {
      this.micros = micros;
    }

    @Override
    public double look(MarlinPlan plan, double best) throws PlanRace.Rejected {
      looked.add(plan);
      return lookAgain(plan);
    }

    @Override
    public double lookAgain(MarlinPlan plan) throws PlanRace.Rejected {
      double t = micros.applyAsDouble(plan);
      if (t < 0) {
        throw new PlanRace.Rejected("wrong");
      }
      return t;
    }
  }

  static List<MarlinPlan> all(MarlinPlan.Problem p) throws PlanRace.Rejected {
    FakeMeter meter = new FakeMeter(plan -> 10);
    PlanSearch.run(p, meter, () -> true);
    return meter.looked;
  }

  /** Every kernel, height and number of warps that fits, each plan once, nothing else. */
  @Test
  void looksAtEveryKernelThatFits() throws Exception {
    for (int[] layer : List.of(QWEN3, MIXTRAL)) {
      for (int tokens : new int[] {1, 4, 64, 1024}) {
        for (int rank : new int[] {0, 16}) {
          MarlinPlan.Problem p = problem(layer, tokens, rank);
          List<MarlinPlan> all = all(p);
          assertThat(all).doesNotHaveDuplicates();
          all.forEach(plan -> MarlinPlanTest.check(p, plan));
          Map<String, Set<Integer>> rows =
              all.stream()
                  .collect(
                      Collectors.groupingBy(
                          plan -> plan.second().kind(),
                          Collectors.mapping(plan -> plan.second().rows(), Collectors.toSet())));
          assertThat(rows.get(MarlinKernels.NARROW)).isEqualTo(new HashSet<>(p.narrow()));
          if (p.naive()) {
            assertThat(rows).hasSize(2).containsEntry(MarlinKernels.SINGLE, Set.of(1));
          } else {
            assertThat(rows.get(MarlinKernels.WIDE)).isEqualTo(new HashSet<>(p.wide()));
          }
          assertThat(all.stream().map(plan -> plan.first().warps()).collect(Collectors.toSet()))
              .containsExactlyInAnyOrder(1, 2, 4, 8);
        }
      }
    }
  }

  @Test
  void findsTheBestOfEachPart() throws Exception {
    MarlinPlan.Problem p = problem(MIXTRAL, 64, 0);
    FakeMeter meter =
        new FakeMeter(plan ->
            100
                - (plan.first().kind().equals(MarlinKernels.NARROW) ? 0 : 20)
                - (plan.first().rows() == 32 ? 10 : 0)
                - (plan.first().warps() == 2 ? 5 : 0)
                - (plan.second().warps() == 1 ? 3 : 0)
                - (plan.groupTiles() == 16 ? 2 : 0));
    PlanRace.Found<MarlinPlan> found = PlanSearch.run(p, meter, () -> true).orElseThrow();
    assertThat(found.micros()).isEqualTo(60);
    assertThat(found.plan().text()).isEqualTo("wide 32 rows, shared by 2 + 1, groups of 16");
    assertThat(found.measured()).isEqualTo(meter.looked.size());
  }

  @Test
  void whatIsWrongIsDroppedAndWhatIsNoFasterLeft() throws Exception {
    MarlinPlan.Problem p = problem(QWEN3, 64, 0);
    MarlinPlan builtIn = MarlinPlan.choose(p);
    PlanRace.Found<MarlinPlan> found =
        PlanSearch.run(
                p,
                new FakeMeter(
                    plan -> plan.equals(builtIn) ? 100 : plan.first().rows() == 16 ? -1 : 99.5),
                () -> true)
            .orElseThrow();
    assertThat(found.plan()).isEqualTo(builtIn);
    assertThat(found.micros()).isEqualTo(100);
    assertThat(found.dropped()).isNotEmpty().allMatch(d -> d.matches("narrow 16 rows.*: wrong"));
    assertThat(PlanSearch.run(p, new FakeMeter(plan -> 1), () -> false)).isEmpty();
  }
}
