package io.moe4j.backend.triton;

import io.moe4j.backend.triton.TileTable.Problem;
import io.moe4j.cuda.ops.Shrink;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.BooleanSupplier;

/**
 * Finds the fastest plan of a forward. The two GEMMs and the two shrinks follow each other, so each
 * is chosen by itself: for every height of tiles the first GEMM's with one fixed second, then the
 * second's with the best first; then rows of the shrink tiles, then the widths and splits of each
 * shrink. The best few and the built-in choice are measured again in turns, so that a drifting
 * clock meets all of them; what is not faster by {@value #GAIN} is left as it is built in. Equal
 * times leave the earlier one. Not thread-safe.
 */
final class TileSearch {
  /** What a choice must gain over the built-in one. */
  static final double GAIN = 0.01;

  private static final double CLOSE = 1.04;
  private static final int FINALISTS = 3;
  private static final int ROUNDS = 5;
  private static final int[] GROUPS = {8, 16};

  /** Measures plans. */
  interface Meter {
    /**
     * A first look.
     *
     * @param plan to measure
     * @param best the least time so far; a plan that is much slower need not be measured well
     * @return microseconds of a forward
     * @throws Rejected if the plan does not work, or computes something else
     */
    double look(TilePlan plan, double best) throws Rejected;

    /**
     * Once more, of a finalist: its whole output is checked, and its time taken with care.
     *
     * @param plan to measure
     * @return microseconds of a forward
     * @throws Rejected if the plan computes something else
     */
    double lookAgain(TilePlan plan) throws Rejected;
  }

  /** A plan is out. */
  static final class Rejected extends Exception {
    private static final long serialVersionUID = 1L;

    Rejected(String why) {
      super(why);
    }
  }

  /**
   * What a search found.
   *
   * @param plan the fastest
   * @param micros its time
   * @param builtInMicros time of the built-in choice
   * @param measured how many plans
   * @param dropped plans that are out, with the reason
   */
  record Found(
      TilePlan plan, double micros, double builtInMicros, int measured, List<String> dropped) {}

  /** Ends a search from inside. */
  private static final class Stopped extends Exception {
    private static final long serialVersionUID = 1L;
  }

  private final Problem problem;
  private final TilePlan builtIn;
  private final TileSet set;
  private final Meter meter;
  private final BooleanSupplier goOn;
  private final Map<TilePlan, Double> times = new LinkedHashMap<>();
  private final List<String> dropped = new ArrayList<>();
  private double best = Double.POSITIVE_INFINITY;

  private TileSearch(
      Problem problem, TilePlan builtIn, TileSet set, Meter meter, BooleanSupplier goOn) {
    this.problem = problem;
    this.builtIn = builtIn;
    this.set = set;
    this.meter = meter;
    this.goOn = goOn;
  }

  /**
   * Searches.
   *
   * @param problem the forward
   * @param set what there is
   * @param meter measures; the built-in choice comes first
   * @param goOn asked before each measurement
   * @return what was found; empty if it was not to go on
   * @throws Rejected if the built-in choice itself is
   */
  static Optional<Found> run(Problem problem, TileSet set, Meter meter, BooleanSupplier goOn)
      throws Rejected {
    TilePlan builtIn = TileTable.choose(problem);
    try {
      return Optional.of(new TileSearch(problem, builtIn, set, meter, goOn).run());
    } catch (Stopped e) {
      return Optional.empty();
    }
  }

  private Found run() throws Stopped, Rejected {
    requireGoOn();
    best = meter.look(builtIn, best);
    times.put(builtIn, best);
    TilePlan found = builtIn;
    for (int rows : heights()) {
      found = faster(found, height(rows));
    }
    for (int group : GROUPS) {
      found = faster(found, grouped(found, group));
    }
    if (problem.lora()) {
      found = shrinks(found);
    }
    return finals();
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
          found = faster(found, with(first, seconds.getFirst(), permute));
        }
      }
    }
    if (found == null) {
      return builtIn;
    }
    for (String second : seconds) {
      // As one launch with the sum, w2 has no tiles to choose from.
      found = faster(found, with(found.w13(), second, found.permute()).withSums(false));
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

  private TilePlan shrinks(TilePlan start) throws Stopped {
    TilePlan found = start;
    for (int rows : set.shrinkRows(problem, start.permute())) {
      found =
          faster(
              found,
              TileTable.plan(
                      problem, start.w13(), start.w2(), start.permute(), start.groupTiles(), rows)
                  .withSums(start.sums()));
    }
    for (Shrink s : set.shrinks(problem, found, true)) {
      found = faster(found, found.with(s, found.shrink2()));
    }
    for (Shrink s : set.shrinks(problem, found, false)) {
      found = faster(found, found.with(found.shrink13(), s));
    }
    return found;
  }

  /** {@return the faster of two, the first if they are alike or the second does not work} */
  private TilePlan faster(@org.jspecify.annotations.Nullable TilePlan a, TilePlan b)
      throws Stopped {
    double of = time(b);
    if (a == null) {
      return b;
    }
    return of < time(a) ? b : a;
  }

  private double time(TilePlan plan) throws Stopped {
    Double known = times.get(plan);
    if (known != null) {
      return known;
    }
    double micros = Double.POSITIVE_INFINITY;
    if (set.has(problem, plan)) {
      requireGoOn();
      try {
        micros = meter.look(plan, best);
      } catch (Rejected e) {
        dropped.add(plan.text() + ": " + e.getMessage());
      }
      best = Math.min(best, micros);
    }
    times.put(plan, micros);
    return micros;
  }

  private void requireGoOn() throws Stopped {
    if (!goOn.getAsBoolean()) {
      throw new Stopped();
    }
  }

  private Found finals() throws Stopped, Rejected {
    int measured = (int) times.values().stream().filter(t -> t < Double.POSITIVE_INFINITY).count();
    double first = times.getOrDefault(builtIn, best);
    List<TilePlan> in = new ArrayList<>();
    in.add(builtIn);
    times.entrySet().stream()
        .filter(e ->
            !e.getKey().equals(builtIn)
                && e.getValue() <= best * CLOSE
                && e.getValue() < first * (1 - GAIN / 2))
        .sorted(Comparator.comparingDouble(Map.Entry::getValue))
        .limit(FINALISTS)
        .forEach(e -> in.add(e.getKey()));
    if (in.size() == 1) {
      return new Found(builtIn, first, first, measured, dropped);
    }
    Map<TilePlan, double[]> all = new LinkedHashMap<>();
    in.forEach(p -> all.put(p, new double[ROUNDS]));
    for (int round = 0; round < ROUNDS; round++) {
      for (TilePlan p : in) {
        double[] samples = all.get(p);
        if (samples == null) {
          continue;
        }
        requireGoOn();
        try {
          samples[round] = meter.lookAgain(p);
        } catch (Rejected e) {
          if (p.equals(builtIn)) {
            throw e;
          }
          all.remove(p);
          dropped.add(p.text() + ": " + e.getMessage());
        }
      }
    }
    all.values().forEach(Arrays::sort);
    double own = median(all.getOrDefault(builtIn, new double[ROUNDS]));
    TilePlan winner = builtIn;
    double least = own * (1 - GAIN);
    for (Map.Entry<TilePlan, double[]> e : all.entrySet()) {
      if (median(e.getValue()) < least) {
        least = median(e.getValue());
        winner = e.getKey();
      }
    }
    return new Found(winner, winner.equals(builtIn) ? own : least, own, measured, dropped);
  }

  private static double median(double[] sorted) {
    return sorted[sorted.length / 2];
  }
}
