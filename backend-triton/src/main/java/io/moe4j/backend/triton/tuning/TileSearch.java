package io.moe4j.backend.triton.tuning;

import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.ops.Shrink;
import io.moe4j.cuda.tuning.PlanRace;
import io.moe4j.cuda.tuning.PlanRace.Stopped;
import java.util.ArrayList;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.function.BooleanSupplier;

/**
 * Which plans a forward is measured with. The two GEMMs and the two shrinks follow each other, so
 * each is chosen by itself: for every height of tiles the first GEMM's with one fixed second, then
 * the second's with the best first; then rows of the shrink tiles, then the widths and splits of
 * each shrink. Not thread-safe.
 */
final class TileSearch {
  private static final int[] GROUPS = {8, 16};

  private final Problem problem;
  private final TilePlan builtIn;
  private final TileSet set;
  private final PlanRace<TilePlan> race;

  private TileSearch(Problem problem, TilePlan builtIn, TileSet set, PlanRace<TilePlan> race) {
    this.problem = problem;
    this.builtIn = builtIn;
    this.set = set;
    this.race = race;
  }

  /**
   * Searches.
   *
   * @param problem the forward
   * @param set what there is
   * @param meter measures; the built-in choice comes first
   * @param goOn asked before each measurement
   * @return what was found; empty if it was not to go on
   * @throws PlanRace.Rejected if the built-in choice itself is
   */
  static Optional<PlanRace.Found<TilePlan>> run(
      Problem problem, TileSet set, PlanRace.Meter<TilePlan> meter, BooleanSupplier goOn)
      throws PlanRace.Rejected {
    TilePlan builtIn = TileTable.choose(problem);
    return PlanRace.run(
        new PlanRace.Field<>(builtIn, plan -> set.has(problem, plan), TilePlan::text),
        meter,
        goOn,
        race -> new TileSearch(problem, builtIn, set, race).run());
  }

  private void run() throws Stopped {
    TilePlan found = builtIn;
    for (int rows : heights()) {
      found = race.faster(found, height(rows));
    }
    for (int group : GROUPS) {
      found = race.faster(found, grouped(found, group));
    }
    if (problem.lora()) {
      shrinks(found);
    }
  }

  /** The built-in choice's height first: the best time is soon small, and the rest cut short. */
  private Set<Integer> heights() {
    Set<Integer> all = new LinkedHashSet<>();
    all.add(builtIn.tileRows());
    set.first(problem, false).stream().map(TilePlan::rows).sorted().forEach(all::add);
    return all;
  }

  private TilePlan height(int rows) throws Stopped {
    TilePlan found = null;
    List<String> seconds = new ArrayList<>(set.second(problem, rows));
    if (seconds.remove(builtIn.w2())) {
      seconds.addFirst(builtIn.w2());
    }
    if (seconds.isEmpty()) {
      return builtIn;
    }
    for (boolean permute : new boolean[] {false, true}) {
      for (String first : set.first(problem, permute)) {
        if (TilePlan.rows(first) == rows) {
          found = race.faster(found, with(first, seconds.getFirst(), permute));
        }
      }
    }
    if (found == null) {
      return builtIn;
    }
    for (String second : seconds) {
      // As one launch with the sum, w2 has no tiles to choose from.
      found = race.faster(found, with(found.w13(), second, found.permute()).withSums(false));
    }
    return found;
  }

  private TilePlan with(String first, String second, boolean permute) {
    return TileTable.plan(
        problem, first, second, permute, builtIn.groupTiles(), builtIn.shrinkRows());
  }

  private TilePlan grouped(TilePlan plan, int group) {
    return new TilePlan(
        plan.tuned(),
        plan.naive(),
        plan.w13(),
        plan.w2(),
        plan.tileRows(),
        plan.tileColumns13(),
        plan.tileColumns2(),
        plan.sums(),
        plan.permute(),
        group,
        plan.shrinkRows(),
        plan.shrink13(),
        plan.shrink2());
  }

  private void shrinks(TilePlan start) throws Stopped {
    TilePlan found = start;
    for (int rows : set.shrinkRows(problem, start.permute())) {
      found =
          race.faster(
              found,
              TileTable.plan(
                      problem, start.w13(), start.w2(), start.permute(), start.groupTiles(), rows)
                  .withSums(start.sums()));
    }
    for (Shrink s : set.shrinks(problem, found, true)) {
      found = race.faster(found, found.with(s, found.shrink2()));
    }
    for (Shrink s : set.shrinks(problem, found, false)) {
      found = race.faster(found, found.with(found.shrink13(), s));
    }
  }
}
