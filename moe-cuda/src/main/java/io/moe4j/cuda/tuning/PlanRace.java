package io.moe4j.cuda.tuning;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.function.BooleanSupplier;
import java.util.function.Function;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;

/**
 * Finds the fastest plan of a forward. A backend's search says which plans meet in which order; the
 * best few and the built-in choice are measured again in turns, so that a drifting clock meets all
 * of them; what is not faster by {@value #GAIN} is left as it is built in. Equal times leave the
 * earlier one. Not thread-safe.
 *
 * @param <P> plans
 * @since 0.2.0
 */
public final class PlanRace<P> {
  /** What a choice must gain over the built-in one. */
  static final double GAIN = 0.01;

  private static final double CLOSE = 1.04;
  private static final int FINALISTS = 3;
  private static final int ROUNDS = 5;

  /**
   * Measures plans.
   *
   * @param <P> plans
   */
  public interface Meter<P> {
    /**
     * A first look.
     *
     * @param plan to measure
     * @param best the least time so far; a plan that is much slower need not be measured well
     * @return microseconds of a forward
     * @throws Rejected if the plan does not work, or computes something else
     */
    double look(P plan, double best) throws Rejected;

    /**
     * Once more, of a finalist: its whole output is checked, and its time taken with care.
     *
     * @param plan to measure
     * @return microseconds of a forward
     * @throws Rejected if the plan computes something else
     */
    double lookAgain(P plan) throws Rejected;
  }

  /**
   * Which plans are compared.
   *
   * @param <P> plans
   */
  @FunctionalInterface
  public interface Search<P> {
    /**
     * Lets plans meet with {@link PlanRace#faster}.
     *
     * @param race that has measured the built-in choice
     * @throws Stopped from {@link PlanRace#faster}
     */
    void run(PlanRace<P> race) throws Stopped;
  }

  /** A plan is out. */
  public static final class Rejected extends Exception {
    private static final long serialVersionUID = 1L;

    /**
     * Says why.
     *
     * @param why a readable clause
     */
    public Rejected(String why) {
      super(why);
    }
  }

  /** Ends a search from inside. */
  public static final class Stopped extends Exception {
    private static final long serialVersionUID = 1L;

    private Stopped() {}
  }

  /**
   * What a search found.
   *
   * @param plan the fastest
   * @param micros its time
   * @param builtInMicros time of the built-in choice
   * @param measured how many plans
   * @param dropped plans that are out, with the reason
   * @param <P> plans
   * @since 0.2.0
   */
  public record Found<P>(
      P plan, double micros, double builtInMicros, int measured, List<String> dropped) {}

  /**
   * What is built in, and what there is.
   *
   * @param builtIn the choice without tuning
   * @param fits whether a plan can be run at all
   * @param text of a plan, for people
   * @param <P> plans
   * @since 0.2.0
   */
  public record Field<P>(P builtIn, Predicate<P> fits, Function<P, String> text) {}

  private final Field<P> field;
  private final Meter<P> meter;
  private final BooleanSupplier goOn;
  private final Map<P, Double> times = new LinkedHashMap<>();
  private final List<String> dropped = new ArrayList<>();
  private double best = Double.POSITIVE_INFINITY;

  private PlanRace(Field<P> field, Meter<P> meter, BooleanSupplier goOn) {
    this.field = field;
    this.meter = meter;
    this.goOn = goOn;
  }

  /**
   * Searches.
   *
   * @param field what is built in, and what there is
   * @param meter measures; the built-in choice comes first
   * @param goOn asked before each measurement
   * @param search which plans are compared
   * @param <P> plans
   * @return what was found; empty if it was not to go on
   * @throws Rejected if the built-in choice itself is
   */
  public static <P> Optional<Found<P>> run(
      Field<P> field, Meter<P> meter, BooleanSupplier goOn, Search<P> search) throws Rejected {
    PlanRace<P> race = new PlanRace<>(field, meter, goOn);
    try {
      race.requireGoOn();
      race.best = meter.look(field.builtIn(), race.best);
      race.times.put(field.builtIn(), race.best);
      search.run(race);
      return Optional.of(race.finals());
    } catch (Stopped e) {
      return Optional.empty();
    }
  }

  /**
   * {@return the faster of two, the first if they are alike or the second does not work} Each plan
   * is measured once.
   *
   * @param a a plan, or null: then the second is
   * @param b another
   * @throws Stopped if the search is not to go on
   */
  public P faster(@Nullable P a, P b) throws Stopped {
    double of = time(b);
    if (a == null) {
      return b;
    }
    return of < time(a) ? b : a;
  }

  private double time(P plan) throws Stopped {
    Double known = times.get(plan);
    if (known != null) {
      return known;
    }
    double micros = Double.POSITIVE_INFINITY;
    if (field.fits().test(plan)) {
      requireGoOn();
      try {
        micros = meter.look(plan, best);
      } catch (Rejected e) {
        dropped.add(field.text().apply(plan) + ": " + e.getMessage());
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

  private Found<P> finals() throws Stopped, Rejected {
    P builtIn = field.builtIn();
    int measured = (int) times.values().stream().filter(t -> t < Double.POSITIVE_INFINITY).count();
    double first = times.getOrDefault(builtIn, best);
    List<P> in = new ArrayList<>();
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
      return new Found<>(builtIn, first, first, measured, dropped);
    }
    Map<P, double[]> all = new LinkedHashMap<>();
    in.forEach(p -> all.put(p, new double[ROUNDS]));
    for (int round = 0; round < ROUNDS; round++) {
      for (P p : in) {
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
          dropped.add(field.text().apply(p) + ": " + e.getMessage());
        }
      }
    }
    all.values().forEach(Arrays::sort);
    double own = median(all.getOrDefault(builtIn, new double[ROUNDS]));
    P winner = builtIn;
    double least = own * (1 - GAIN);
    for (Map.Entry<P, double[]> e : all.entrySet()) {
      if (median(e.getValue()) < least) {
        least = median(e.getValue());
        winner = e.getKey();
      }
    }
    return new Found<>(winner, winner.equals(builtIn) ? own : least, own, measured, dropped);
  }

  private static double median(double[] sorted) {
    return sorted[sorted.length / 2];
  }
}
