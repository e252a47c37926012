package io.moe4j.backend.cpu;

/**
 * Which blocks of an expert stand in the memory of which NUMA node: every node has as many of each
 * expert, so that all memories are read at once whichever experts tokens choose.
 */
final class NodeShare {
  private NodeShare() {}

  /**
   * {@return a node's first block of every expert; the next one's is behind its last}
   *
   * @param blocks of an expert
   * @param nodes how many
   * @param node {@code 0..nodes}
   */
  static int first(int blocks, int nodes, int node) {
    return (int) ((long) blocks * node / nodes);
  }
}
