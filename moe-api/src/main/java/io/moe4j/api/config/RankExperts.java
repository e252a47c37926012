package io.moe4j.api.config;

import java.util.Optional;
import org.jspecify.annotations.Nullable;

/**
 * Which experts this rank has, and which every rank has where that is known: one may follow from
 * the other.
 *
 * @param map of this rank; empty = it has all experts
 * @param placement of all ranks; empty = not known
 */
record RankExperts(Optional<ExpertMap> map, Optional<ExpertPlacement> placement) {
  /**
   * Derives what was not given, and checks what was.
   *
   * @throws IllegalArgumentException if they do not fit the layer, the ranks or each other
   */
  static RankExperts of(
      int numExperts,
      ParallelConfig parallel,
      @Nullable ExpertMap map,
      @Nullable ExpertPlacement placement) {
    if (placement != null) {
      requireFits(placement, numExperts, parallel);
      ExpertMap follows = placement.map(parallel.epRank());
      if (map != null) {
        requireFits(map, numExperts, parallel);
        if (!map.equals(follows)) {
          throw new IllegalArgumentException(
              "expertMap is not what placement says of expert-parallel rank " + parallel.epRank());
        }
      }
      return new RankExperts(Optional.of(follows), Optional.of(placement));
    }
    if (map == null) {
      // Expert parallelism without a map means consecutive experts.
      map =
          parallel.epSize() == 1
              ? null
              : ExpertMap.linear(numExperts, parallel.epSize(), parallel.epRank());
    } else {
      requireFits(map, numExperts, parallel);
    }
    return new RankExperts(
        Optional.ofNullable(map),
        map != null && isImplied(map, numExperts, parallel)
            ? Optional.of(ExpertPlacement.linear(numExperts, parallel.epSize()))
            : Optional.empty());
  }

  /** Whether a map says no more than that experts are consecutive. */
  static boolean isImplied(ExpertMap map, int numExperts, ParallelConfig parallel) {
    return parallel.epSize() > 1
        && map.equals(ExpertMap.linear(numExperts, parallel.epSize(), parallel.epRank()));
  }

  /** Without expert parallelism every expert must be here: no other rank would compute the rest. */
  private static void requireFits(ExpertMap map, int numExperts, ParallelConfig parallel) {
    if (map.numGlobalExperts() != numExperts) {
      throw new IllegalArgumentException(
          "expertMap covers " + map.numGlobalExperts() + " experts, numExperts is " + numExperts);
    }
    if (parallel.epSize() == 1 && map.numLocalExperts() != numExperts) {
      throw new IllegalArgumentException(
          "expertMap leaves "
              + (numExperts - map.numLocalExperts())
              + " of "
              + numExperts
              + " experts to other ranks, but parallel is "
              + parallel
              + ": say ParallelConfig.expert(epSize, epRank)");
    }
    map.rank()
        .ifPresent(rank -> {
          if (rank.epSize() != parallel.epSize() || rank.epRank() != parallel.epRank()) {
            throw new IllegalArgumentException(
                "expertMap was made for expert-parallel rank "
                    + rank.epRank()
                    + " of "
                    + rank.epSize()
                    + ", parallel is "
                    + parallel);
          }
        });
  }

  private static void requireFits(ExpertPlacement p, int numExperts, ParallelConfig parallel) {
    if (p.numExperts() != numExperts || p.ranks() != parallel.epSize()) {
      throw new IllegalArgumentException(
          "placement is of "
              + p.numExperts()
              + " experts on "
              + p.ranks()
              + " ranks; numExperts is "
              + numExperts
              + ", and parallel is "
              + parallel
              + ": say ParallelConfig.expert(epSize, epRank)");
    }
  }
}
