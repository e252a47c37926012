package io.moe4j.cli.bench;

import java.util.Map;

/**
 * How the routings of a case are drawn. All of uniform distribution; a few tokens touch now more,
 * now fewer experts, and a forward's time goes with them.
 *
 * @param batches of a pass; 0 = so many that it finds little of the pass before in a cache
 * @param touched by number of tokens, the distinct experts of a batch, the mean over the batches,
 *     that the draw is to come close to; the mean over all routings where a number is missing
 * @param set another number, other draws
 */
public record Draws(int batches, Map<Integer, Double> touched, long set) {
  /** As every bench has them that was asked for nothing else. */
  public static final Draws DEFAULT = new Draws(0, Map.of(), 0);

  /**
   * Copies the map.
   *
   * @param batches 0 or more
   * @param touched copied
   * @param set any
   */
  public Draws {
    touched = Map.copyOf(touched);
  }

  /** {@return whether batches are independent: an expert may be chosen by one after the other} */
  boolean independent() {
    return batches > 0 || !touched.isEmpty();
  }
}
