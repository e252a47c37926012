package io.moe4j.backend.triton.tuning;

import io.moe4j.backend.triton.tiles.TileChoice;
import io.moe4j.backend.triton.tiles.TilePlan;
import io.moe4j.backend.triton.tiles.TileSet;
import io.moe4j.backend.triton.tiles.TileTable;
import io.moe4j.backend.triton.tiles.TileTable.Problem;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;

/**
 * Choices of one layer from what was tuned: the entry of the nearest sizes, the built-in table
 * where none is near. An entry is near if tokens, adapters and rank are each within a factor of two
 * of its own; of several the one with the smallest product of the three factors, of those the one
 * with fewer adapters, lower rank, fewer tokens. One token is only ever measured by one token, and
 * an entry for single pairs serves single pairs only. Immutable; reads nothing but its arguments.
 */
final class TunedTiles implements TileChoice {
  private static final double NEAR = 2;

  /**
   * @param builtIn whether the built-in table says the same for its size; then it is asked for the
   *     sizes around as well, since its rules follow them closer
   */
  private record Known(TunedEntry entry, boolean naive, boolean builtIn) {}

  private final List<Known> known = new ArrayList<>();

  /**
   * @param entries as {@link TunedTable} orders them
   * @param set what there is
   * @param layer any forward of the layer; its tokens, slots and rank are not looked at
   */
  TunedTiles(List<TunedEntry> entries, TileSet set, Problem layer) {
    for (TunedEntry e : entries) {
      Problem p = layer.of(e.tokens(), e.adapters(), e.rank());
      if (TuningFile.plausible(e) && set.has(p, e.plan(p))) {
        known.add(new Known(e, TileTable.naive(p), e.plan(p).equals(TileTable.choose(p))));
      }
    }
  }

  /** {@return how many entries can be used} */
  int size() {
    return known.size();
  }

  /** {@return which sizes are known, for a log} */
  String text() {
    return known.stream()
        .map(Known::entry)
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
    Known best = null;
    double least = Double.POSITIVE_INFINITY;
    boolean naive = TileTable.naive(p);
    for (Known k : known) {
      TunedEntry e = k.entry;
      if (k.naive != naive
          || (e.adapters() == 0) != !p.lora()
          || (e.tokens() == 1) != (p.tokens() == 1)) {
        continue;
      }
      double far = factor(e.tokens(), p.tokens());
      if (far <= NEAR && p.lora()) {
        double slots = factor(e.adapters(), p.slots());
        double rank = factor(e.rank(), p.rank());
        far = slots <= NEAR && rank <= NEAR ? far * slots * rank : Double.POSITIVE_INFINITY;
      } else if (far > NEAR) {
        continue;
      }
      if (far < least) {
        least = far;
        best = k;
      }
    }
    return best == null || best.builtIn ? TileTable.choose(p) : best.entry.plan(p);
  }

  private static double factor(int a, int b) {
    return (double) Math.max(a, b) / Math.min(a, b);
  }
}
