package io.moe4j.api.config;

import java.util.Arrays;
import java.util.Optional;

/**
 * Global expert id to local expert index, -1 where another rank owns the expert. Local indices are
 * {@code 0..numLocalExperts-1}, each used once. Immutable.
 *
 * @since 0.1.0
 */
public final class ExpertMap {
  /**
   * One rank of expert parallelism.
   *
   * @param epSize ranks that share the experts
   * @param epRank this one
   * @since 0.2.0
   */
  public record Rank(int epSize, int epRank) {
    /**
     * Checks the components.
     *
     * @param epSize at least 1
     * @param epRank {@code 0..epSize-1}
     */
    public Rank {
      if (epSize < 1 || epRank < 0 || epRank >= epSize) {
        throw new IllegalArgumentException(
            "epRank is " + epRank + " of " + epSize + ", must be 0.." + (epSize - 1));
      }
    }
  }

  private final int[] globalToLocal;
  private final int numLocal;
  private final Optional<Rank> rank;

  private ExpertMap(int[] globalToLocal, Optional<Rank> rank) {
    this.globalToLocal = globalToLocal;
    this.rank = rank;
    int n = 0;
    for (int local : globalToLocal) {
      n += local >= 0 ? 1 : 0;
    }
    this.numLocal = n;
    boolean[] seen = new boolean[n];
    for (int e = 0; e < globalToLocal.length; e++) {
      int local = globalToLocal[e];
      if (local < -1 || local >= n || (local >= 0 && seen[local])) {
        throw new IllegalArgumentException(
            "expert map entry "
                + e
                + " is "
                + local
                + "; local indices must be -1 or 0.."
                + (n - 1)
                + ", each once");
      }
      if (local >= 0) {
        seen[local] = true;
      }
    }
  }

  /**
   * A map from an array of local indices, {@code -1} for experts of other ranks.
   *
   * @param globalToLocal one entry per global expert, copied
   * @return the map
   * @throws IllegalArgumentException if local indices are not {@code -1} or {@code 0..n-1} once
   *     each
   */
  public static ExpertMap of(int... globalToLocal) {
    return new ExpertMap(globalToLocal.clone(), Optional.empty());
  }

  /**
   * The contiguous block of one expert-parallel rank; earlier ranks get one more where it does not
   * divide.
   *
   * @param numExperts global experts
   * @param epSize ranks
   * @param epRank this rank
   * @return the map
   */
  public static ExpertMap linear(int numExperts, int epSize, int epRank) {
    Rank rank = new Rank(epSize, epRank);
    int base = numExperts / epSize;
    int extra = numExperts % epSize;
    int start = epRank * base + Math.min(epRank, extra);
    int count = base + (epRank < extra ? 1 : 0);
    int[] map = new int[numExperts];
    Arrays.fill(map, -1);
    for (int i = 0; i < count; i++) {
      map[start + i] = i;
    }
    return new ExpertMap(map, Optional.of(rank));
  }

  /**
   * This map for a known rank: a config that says another rank then refuses it.
   *
   * @param epSize ranks that share the experts
   * @param epRank whose map this is
   * @return the map
   */
  public ExpertMap forRank(int epSize, int epRank) {
    return new ExpertMap(globalToLocal, Optional.of(new Rank(epSize, epRank)));
  }

  /** {@return the rank it was made for, where that is known} */
  public Optional<Rank> rank() {
    return rank;
  }

  /** {@return the number of global experts} */
  public int numGlobalExperts() {
    return globalToLocal.length;
  }

  /** {@return the number of experts this rank owns} */
  public int numLocalExperts() {
    return numLocal;
  }

  /**
   * {@return the local index of a global expert, -1 if another rank owns it}
   *
   * @param global {@code 0..numGlobalExperts-1}
   */
  public int local(int global) {
    return globalToLocal[global];
  }

  /** {@return a copy, one entry per global expert} */
  public int[] toArray() {
    return globalToLocal.clone();
  }

  @Override
  public boolean equals(Object o) {
    return o instanceof ExpertMap m && Arrays.equals(m.globalToLocal, globalToLocal);
  }

  @Override
  public int hashCode() {
    return Arrays.hashCode(globalToLocal);
  }

  @Override
  public String toString() {
    return "ExpertMap[" + numLocal + " of " + globalToLocal.length + "]";
  }
}
