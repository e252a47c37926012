package io.moe4j.cuda.tuning;

import java.util.Comparator;
import java.util.List;
import java.util.Optional;
import java.util.function.Predicate;

/**
 * The plan that was fastest for forwards of one size: what a backend's own record of it has beside
 * the plan. Immutable.
 *
 * @since 0.2.0
 */
public interface TunedEntry {
  /** By adapters, rank and tokens, ascending. */
  Comparator<TunedEntry> BY_SIZES =
      Comparator.comparingInt(TunedEntry::adapters)
          .thenComparingInt(TunedEntry::rank)
          .thenComparingInt(TunedEntry::tokens);

  /** {@return {@code T}} */
  int tokens();

  /** {@return adapters in slots, 0 = the base model} */
  int adapters();

  /** {@return rank of them, padded to a page; 0 = the base model} */
  int rank();

  /** {@return microseconds of a forward, as measured} */
  double micros();

  /** {@return microseconds of a forward with the built-in choice, measured beside it} */
  double builtInMicros();

  /**
   * {@return whether it answers for the same forwards as another}
   *
   * @param other of the same layer and card
   */
  default boolean sameSizes(TunedEntry other) {
    return tokens() == other.tokens() && adapters() == other.adapters() && rank() == other.rank();
  }

  /** {@return whether its numbers of tokens and adapters can be computed with at all} */
  default boolean hasSizes() {
    return tokens() > 0
        && tokens() <= TuningFile.MAX_TOKENS
        && adapters() <= TuningFile.MAX_ADAPTERS
        && rank() <= TuningFile.MAX_RANK
        && (rank() > 0) == (adapters() > 0);
  }

  /**
   * The entry of the nearest sizes. One is near if tokens, adapters and rank are each within a
   * factor of two of its own; of several the one with the smallest product of the three factors, of
   * those the first. One token is only ever answered by one token, forwards with adapters by such.
   *
   * @param entries of one layer, {@link #BY_SIZES}
   * @param tokens {@code T}
   * @param adapters in use, 0 = none
   * @param rank of them, padded to a page
   * @param fits what else must hold
   * @param <E> the backend's
   * @return empty where none is near
   */
  static <E extends TunedEntry> Optional<E> nearest(
      List<E> entries, int tokens, int adapters, int rank, Predicate<E> fits) {
    E best = null;
    double least = Double.POSITIVE_INFINITY;
    for (E e : entries) {
      if ((e.adapters() == 0) != (adapters == 0) || (e.tokens() == 1) != (tokens == 1)) {
        continue;
      }
      double far = near(e.tokens(), tokens);
      if (adapters > 0) {
        far *= near(e.adapters(), adapters) * near(e.rank(), rank);
      }
      if (far < least && fits.test(e)) {
        least = far;
        best = e;
      }
    }
    return Optional.ofNullable(best);
  }

  /** The factor between two sizes, infinite over two. */
  private static double near(int a, int b) {
    double factor = (double) Math.max(a, b) / Math.min(a, b);
    return factor <= 2 ? factor : Double.POSITIVE_INFINITY;
  }
}
