package io.moe4j.backend.marlin;

import io.moe4j.cuda.tuning.PlanRace;
import io.moe4j.cuda.tuning.PlanRace.Stopped;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.function.BooleanSupplier;

/**
 * Which plans a forward is measured with: for every kernel and height, how many warps share w13's
 * contraction with the built-in number for w2's, then w2's with the best of those; of the fastest
 * then groups of row tiles.
 */
final class PlanSearch {
  private static final int[] GROUPS = {1, 4, 8, 16, 32};

  /** A kernel at one height. */
  private record Height(String kind, int rows) {}

  private PlanSearch() {}

  /**
   * Searches.
   *
   * @param p the forward
   * @param meter measures; the built-in choice comes first
   * @param goOn asked before each measurement
   * @return what was found; empty if it was not to go on
   * @throws PlanRace.Rejected if the built-in choice itself is
   */
  static Optional<PlanRace.Found<MarlinPlan>> run(
      MarlinPlan.Problem p, PlanRace.Meter<MarlinPlan> meter, BooleanSupplier goOn)
      throws PlanRace.Rejected {
    MarlinPlan builtIn = MarlinPlan.choose(p);
    return PlanRace.run(
        new PlanRace.Field<>(builtIn, plan -> plan.fits(p), MarlinPlan::text),
        meter,
        goOn,
        race -> run(race, p, builtIn));
  }

  private static void run(PlanRace<MarlinPlan> race, MarlinPlan.Problem p, MarlinPlan builtIn)
      throws Stopped {
    MarlinPlan found = builtIn;
    for (Height h : heights(p, builtIn)) {
      MarlinPlan best = MarlinPlan.of(p, h.kind(), h.rows());
      for (boolean first : new boolean[] {true, false}) {
        MarlinPlan start = best;
        for (int warps = 1; warps <= ProductPlan.WARPS; warps *= 2) {
          best = race.faster(best, start.withWarps(p, first, warps));
        }
      }
      found = race.faster(found, best);
    }
    if (found.first().kind().equals(MarlinKernels.WIDE)) {
      MarlinPlan start = found;
      for (int tiles : GROUPS) {
        found = race.faster(found, start.withGroupTiles(tiles));
      }
    }
  }

  /** The built-in choice's first: the best time is soon small, and the rest cut short. */
  private static List<Height> heights(MarlinPlan.Problem p, MarlinPlan builtIn) {
    List<Height> all = new ArrayList<>();
    p.narrow().forEach(r -> all.add(new Height(MarlinKernels.NARROW, r)));
    if (p.isSingle()) {
      all.add(new Height(MarlinKernels.SINGLE, 1));
    }
    if (!p.naive()) {
      p.wide().forEach(r -> all.add(new Height(MarlinKernels.WIDE, r)));
    }
    Height own = new Height(builtIn.second().kind(), builtIn.second().rows());
    all.remove(own);
    all.addFirst(own);
    return all;
  }
}
