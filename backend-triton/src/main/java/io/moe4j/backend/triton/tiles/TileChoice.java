package io.moe4j.backend.triton.tiles;

/** Who says which tiles a forward runs with. Safe for several threads. */
@FunctionalInterface
public interface TileChoice {
  /**
   * {@return the plan of a forward}
   *
   * @param problem its sizes
   */
  TilePlan choose(TileTable.Problem problem);
}
