package io.moe4j.backend.triton.tuning;

import io.moe4j.backend.triton.tiles.TileChoice;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import io.moe4j.cuda.tuning.TunedEntry;
import io.moe4j.cuda.tuning.TunedTable;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Set;
import java.util.stream.Collectors;

/**
 * Choices of one layer from what was tuned: the entry of the nearest sizes, the built-in table
 * where none is near. An entry is near if tokens, adapters and rank are each within a factor of two
 * of its own; of several the one with the smallest product of the three factors, of those the one
 * with fewer adapters, lower rank, fewer tokens. One token is only ever measured by one token, and
 * an entry for single pairs serves single pairs only. Immutable; reads nothing but its arguments.
 */
final class TunedTiles implements TileChoice {
  private final List<TileEntry> known = new ArrayList<>();

  /** Those with which the built-in table agrees. */
  private final Set<TileEntry> builtIn = new HashSet<>();

  private final Problem layer;

  /**
   * @param entries as {@link TunedTable} orders them
   * @param set what there is
   * @param layer any forward of the layer; its tokens, slots and rank are not looked at
   */
  TunedTiles(List<TileEntry> entries, TileSet set, Problem layer) {
    this.layer = layer;
    for (TileEntry e : entries) {
      Problem p = problem(e);
      if (e.isPlausible() && set.has(p, e.plan(p))) {
        known.add(e);
        if (e.plan(p).equals(TileTable.choose(p))) {
          builtIn.add(e);
        }
      }
    }
  }

  private Problem problem(TileEntry e) {
    return layer.of(e.tokens(), e.adapters(), e.rank());
  }

  /** {@return how many entries can be used} */
  int size() {
    return known.size();
  }

  /** {@return which sizes are known, for a log} */
  String text() {
    return known.stream()
        .collect(
            Collectors.groupingBy(
                e -> e.adapters() == 0 ? "base" : e.adapters() + " adapters of rank " + e.rank(),
                java.util.LinkedHashMap::new,
                Collectors.mapping(e -> Integer.toString(e.tokens()), Collectors.joining(", "))))
        .entrySet()
        .stream()
        .map(g -> g.getKey() + ": T " + g.getValue())
        .collect(Collectors.joining("; "));
  }

  @Override
  public TilePlan choose(Problem p) {
    boolean naive = TileTable.naive(p);
    TileEntry best =
        TunedEntry.nearest(
                known, p.tokens(), p.slots(), p.rank(), e -> TileTable.naive(problem(e)) == naive)
            .orElse(null);
    // Where the table was the best it follows the sizes around closer.
    return best == null || builtIn.contains(best) ? TileTable.choose(p) : best.plan(p);
  }
}
