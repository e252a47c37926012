package io.moe4j.backend.marlin;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.cuda.tuning.TunedEntry;
import io.moe4j.cuda.tuning.TuningFile;
import java.util.Optional;

/**
 * The plan that was fastest for forwards of one size. What follows from the sizes (shared memory,
 * outputs of a block, shrinks) is not kept.
 *
 * @param tokens {@code T}
 * @param adapters in slots, 0 = the base model
 * @param rank of them, padded to a page; 0 = the base model
 * @param kind of kernel
 * @param rows of a tile
 * @param warps13 that share the contraction of w13
 * @param warps2 the same of w2
 * @param groupTiles neighbouring row tiles
 * @param micros of a forward, as measured
 * @param builtInMicros of a forward with the built-in choice, measured beside it
 */
record PlanEntry(
    int tokens,
    int adapters,
    int rank,
    String kind,
    int rows,
    int warps13,
    int warps2,
    int groupTiles,
    double micros,
    double builtInMicros)
    implements TunedEntry {
  static PlanEntry of(MarlinPlan.Problem p, MarlinPlan plan, double micros, double builtInMicros) {
    return new PlanEntry(
        p.tokens(),
        p.slots(),
        p.rank(),
        plan.second().kind(),
        plan.second().rows(),
        plan.first().warps(),
        plan.second().warps(),
        plan.groupTiles(),
        micros,
        builtInMicros);
  }

  /** {@return the plan of a forward, if a search could have found it for one of those sizes} */
  Optional<MarlinPlan> plan(MarlinPlan.Problem p) {
    boolean there =
        switch (kind) {
          case MarlinKernels.WIDE -> p.wide().contains(rows);
          case MarlinKernels.NARROW -> p.narrow().contains(rows);
          case MarlinKernels.SINGLE -> p.isSingle() && rows == 1;
          default -> false;
        };
    if (!hasSizes() || !there || !isShare(warps13) || !isShare(warps2)) {
      return Optional.empty();
    }
    return Optional.of(
            MarlinPlan.of(p, kind, rows)
                .withWarps(p, true, warps13)
                .withWarps(p, false, warps2)
                .withGroupTiles(groupTiles))
        .filter(plan ->
            plan.fits(p) && plan.first().warps() == warps13 && plan.second().warps() == warps2);
  }

  private static boolean isShare(int warps) {
    return Integer.bitCount(warps) == 1 && warps <= ProductPlan.WARPS;
  }

  /** How a file has it. */
  static final TuningFile.Form<PlanEntry> FORM =
      new TuningFile.Form<>() {
        @Override
        public PlanEntry read(JsonNode e) throws TuningFile.Unusable {
          return new PlanEntry(
              TuningFile.number(e, "tokens"),
              TuningFile.number(e, "adapters"),
              TuningFile.number(e, "rank"),
              TuningFile.text(e, "kind"),
              TuningFile.number(e, "rows"),
              TuningFile.number(e, "warps13"),
              TuningFile.number(e, "warps2"),
              TuningFile.number(e, "group_tiles"),
              TuningFile.micros(e, "us"),
              TuningFile.micros(e, "built_in_us"));
        }

        @Override
        public void write(PlanEntry e, ObjectNode n) {
          n.put("tokens", e.tokens());
          n.put("adapters", e.adapters());
          n.put("rank", e.rank());
          n.put("kind", e.kind());
          n.put("rows", e.rows());
          n.put("warps13", e.warps13());
          n.put("warps2", e.warps2());
          n.put("group_tiles", e.groupTiles());
          n.put("us", TuningFile.rounded(e.micros()));
          n.put("built_in_us", TuningFile.rounded(e.builtInMicros()));
        }
      };
}
