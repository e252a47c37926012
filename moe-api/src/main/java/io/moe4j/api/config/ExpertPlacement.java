package io.moe4j.api.config;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;

/**
 * Which expert-parallel rank has which experts, for all ranks. An expert may be on several ranks;
 * then one of them computes it for a token, the same one in every call: the token's own rank where
 * that has the expert, else the copies take turns by the token's rank. Immutable.
 *
 * @since 0.2.0
 */
public final class ExpertPlacement {
  private final List<ExpertMap> maps;

  /** Ranks by expert, ascending. */
  private final int[][] copies;

  private final boolean redundant;

  private ExpertPlacement(List<ExpertMap> given) {
    if (given.isEmpty()) {
      throw new IllegalArgumentException("maps is empty, must have one for each rank");
    }
    int experts = given.getFirst().numGlobalExperts();
    List<ExpertMap> ranked = new ArrayList<>();
    for (int r = 0; r < given.size(); r++) {
      ExpertMap map = given.get(r);
      if (map.numGlobalExperts() != experts) {
        throw new IllegalArgumentException(
            "the map of rank "
                + r
                + " covers "
                + map.numGlobalExperts()
                + " experts, that of rank 0 "
                + experts);
      }
      int rank = r;
      map.rank()
          .ifPresent(known -> {
            if (known.epRank() != rank || known.epSize() != given.size()) {
              throw new IllegalArgumentException(
                  "the map of rank "
                      + rank
                      + " of "
                      + given.size()
                      + " was made for rank "
                      + known.epRank()
                      + " of "
                      + known.epSize());
            }
          });
      ranked.add(map.forRank(given.size(), r));
    }
    maps = List.copyOf(ranked);
    copies = new int[experts][];
    boolean several = false;
    for (int e = 0; e < experts; e++) {
      int expert = e;
      copies[e] =
          IntStream.range(0, maps.size()).filter(r -> maps.get(r).local(expert) >= 0).toArray();
      if (copies[e].length == 0) {
        throw new IllegalArgumentException("expert " + e + " is on no rank");
      }
      several |= copies[e].length > 1;
    }
    redundant = several;
  }

  /**
   * A placement of any kind.
   *
   * @param maps one for each rank, in order
   * @return the placement
   * @throws IllegalArgumentException if an expert is on no rank, or maps are of different layers
   */
  public static ExpertPlacement of(List<ExpertMap> maps) {
    return new ExpertPlacement(maps);
  }

  /**
   * Consecutive experts on each rank, none twice.
   *
   * @param numExperts global experts
   * @param epSize ranks, at most {@code numExperts}
   * @return the placement
   */
  public static ExpertPlacement linear(int numExperts, int epSize) {
    return new ExpertPlacement(
        IntStream.range(0, epSize).mapToObj(r -> ExpertMap.linear(numExperts, epSize, r)).toList());
  }

  /** {@return the number of ranks} */
  public int ranks() {
    return maps.size();
  }

  /** {@return the number of global experts} */
  public int numExperts() {
    return copies.length;
  }

  /**
   * {@return the map of a rank}
   *
   * @param rank {@code 0..ranks-1}
   */
  public ExpertMap map(int rank) {
    return maps.get(rank);
  }

  /** {@return whether an expert is on several ranks} */
  public boolean isRedundant() {
    return redundant;
  }

  /**
   * {@return the ranks that have an expert, ascending}
   *
   * @param expert global id
   */
  public int[] copies(int expert) {
    return copies[expert].clone();
  }

  /**
   * {@return the rank that computes an expert for a token, -1 for an id that is no expert}
   *
   * @param expert global id, or anything else that a routing may hold
   * @param tokenRank the expert-parallel rank that has the token
   */
  public int rank(int expert, int tokenRank) {
    if (expert < 0 || expert >= copies.length) {
      return -1;
    }
    int[] those = copies[expert];
    return maps.get(tokenRank).local(expert) >= 0 ? tokenRank : those[tokenRank % those.length];
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof ExpertPlacement p && p.maps.equals(maps);
  }

  @Override
  public int hashCode() {
    return maps.hashCode();
  }

  /**
   * Like {@code ExpertPlacement[[0, 1, -1], [-1, -1, 0]]}.
   *
   * @return local indices by rank and expert
   */
  @Override
  public String toString() {
    return "ExpertPlacement" + maps.stream().map(m -> Arrays.toString(m.toArray())).toList();
  }
}
