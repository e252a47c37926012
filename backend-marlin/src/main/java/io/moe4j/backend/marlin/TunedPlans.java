package io.moe4j.backend.marlin;

import io.moe4j.cuda.tuning.TunedEntry;
import io.moe4j.cuda.tuning.TunedTable;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;

/**
 * Choices of one layer from what was tuned: the entry of the nearest sizes, the built-in choice
 * where none is near. An entry for single pairs serves single pairs only. Whatever is in the
 * entries, only plans run that the card has kernels and room for. Immutable.
 */
final class TunedPlans implements Function<MarlinPlan.Problem, MarlinPlan> {
  private final List<PlanEntry> entries;

  /**
   * @param entries as {@link TunedTable} orders them
   */
  TunedPlans(List<PlanEntry> entries) {
    this.entries = List.copyOf(entries);
  }

  @Override
  public MarlinPlan apply(MarlinPlan.Problem p) {
    PlanEntry best =
        TunedEntry.nearest(entries, p.tokens(), p.slots(), p.rank(), e -> isUsable(e, p))
            .orElse(null);
    if (best == null) {
      return MarlinPlan.choose(p);
    }
    // Where the built-in choice was the best its rules follow the sizes around closer.
    MarlinPlan.Problem own = sizes(best, p);
    return best.plan(own).equals(Optional.of(MarlinPlan.choose(own)))
        ? MarlinPlan.choose(p)
        : best.plan(p).orElseGet(() -> MarlinPlan.choose(p));
  }

  private static boolean isUsable(PlanEntry e, MarlinPlan.Problem p) {
    return e.plan(p).isPresent() && sizes(e, p).naive() == p.naive();
  }

  private static MarlinPlan.Problem sizes(PlanEntry e, MarlinPlan.Problem p) {
    return p.of(e.tokens(), e.adapters(), e.rank());
  }
}
