package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.kernel.Kernels;
import java.util.Arrays;

/**
 * Which tokens of an expert go into panels. A panel is one, two or four vectors of tokens wide;
 * tokens that would leave most of a panel empty stay behind as a tail of dot products with the rows
 * that are widened for the panels. Groups of panels are what a tile computes. Reused from call to
 * call.
 */
final class PanelPlan {
  /** Panels of a group at most; bounds a tile's scratch. */
  static final int MAX_GROUP = 8;

  /** Rows of a tile: widened, they fit a core's own cache beside everything else. */
  static final int TILE_ROWS = 4 * Kernels.PANEL_ROWS;

  /** Tokens of a panel at most. */
  static final int MAX_WIDTH = 64;

  /** Sums of a tile for one panel at most. */
  static final int SUMS = TILE_ROWS * MAX_WIDTH;

  /** What the panels of a group should take at most, so that they stay in a core's own cache. */
  private static final long GROUP_BYTES = 1 << 20;

  private final int lanes;
  private final int most;
  private final int alone;

  int panels;
  int totalLanes;

  /** Its expert. */
  int[] panelExpert = new int[0];

  /** Where a panel's lanes begin among all lanes. */
  int[] panelLane = new int[0];

  /** One, two or four vectors. */
  int[] panelVectors = new int[0];

  /** Sorted position of a panel's first token. */
  int[] panelStart = new int[0];

  /** Tokens in it. */
  int[] panelTokens = new int[0];

  /** By sorted position: its panel, or {@code ~lane} of its own if it is in none. */
  int[] panelOf = new int[0];

  int groups;
  int[] groupExpert = new int[0];
  int[] groupPanel = new int[0];
  int[] groupPanels = new int[0];

  /** Sorted position of the tail's first token. */
  int[] tailStart = new int[0];

  int[] tailTokens = new int[0];

  /**
   * @param lanes of a vector
   * @param most vectors of a panel: 2 or 4
   * @param alone tokens of an expert that are left to dot products
   */
  private PanelPlan(int lanes, int most, int alone) {
    this.lanes = lanes;
    this.most = most;
    this.alone = alone;
  }

  /** {@return an empty plan for some kernels} */
  static PanelPlan of(Kernels kernels) {
    int lanes = kernels.lanes();
    // Up to three passes over the weights with a few tokens each are quicker than a partly empty
    // vector: dot products read from memory while they multiply, widening only reads.
    int alone = lanes >= 8 ? 3 * kernels.dotTokens() : lanes / 2;
    return new PanelPlan(lanes, Math.min(kernels.panelVectors(), MAX_WIDTH / lanes), alone);
  }

  /** {@return the position behind a panel's last token} */
  int end(int panel) {
    return panelStart[panel] + panelTokens[panel];
  }

  /** {@return the most lanes that some pairs can have, in panels or not} */
  static long maxLanes(long pairs, int experts, int lanes) {
    return Math.min(2 * pairs, pairs + (long) experts * (lanes - 1)) + 4L * lanes;
  }

  void clear(int positions) {
    if (panelOf.length < positions) {
      panelOf = new int[positions];
    }
    panels = 0;
    groups = 0;
    totalLanes = 0;
  }

  /**
   * {@return whether an expert with that many tokens is worth panels}
   *
   * @param tokens of the expert
   */
  boolean worthwhile(int tokens) {
    return tokens > alone;
  }

  /** Gives some tokens that stand in no panel a lane each. */
  void addRows(int start, int tokens) {
    for (int i = 0; i < tokens; i++) {
      panelOf[start + i] = ~totalLanes++;
    }
  }

  /** Plans one expert's tokens. */
  void add(int expert, int start, int tokens, int width) {
    int first = panels;
    int at = start;
    int left = tokens;
    int few = lanes / 4;
    while (left > lanes + few) {
      int vectors = most == 4 && left > 3 * lanes + few ? 4 : 2;
      at = addPanel(expert, vectors, at, Math.min(left, vectors * lanes));
      left = start + tokens - at;
    }
    if (left > few) {
      at = addPanel(expert, 1, at, Math.min(left, lanes));
      left = start + tokens - at;
    }
    addRows(at, left);
    int count = panels - first;
    int fit = (int) Math.max(1, GROUP_BYTES / (4L * most * lanes * width));
    int groupsHere = Math.ceilDiv(count, Math.min(fit, MAX_GROUP));
    for (int g = 0; g < groupsHere; g++) {
      int from = first + (int) ((long) count * g / groupsHere);
      int to = first + (int) ((long) count * (g + 1) / groupsHere);
      addGroup(expert, from, to - from, at, g == groupsHere - 1 ? left : 0);
    }
  }

  private int addPanel(int expert, int vectors, int start, int tokens) {
    if (panels == panelLane.length) {
      int n = Math.max(64, 2 * panels);
      panelExpert = Arrays.copyOf(panelExpert, n);
      panelLane = Arrays.copyOf(panelLane, n);
      panelVectors = Arrays.copyOf(panelVectors, n);
      panelStart = Arrays.copyOf(panelStart, n);
      panelTokens = Arrays.copyOf(panelTokens, n);
    }
    panelExpert[panels] = expert;
    panelLane[panels] = totalLanes;
    panelVectors[panels] = vectors;
    panelStart[panels] = start;
    for (int i = 0; i < tokens; i++) {
      panelOf[start + i] = panels;
    }
    panelTokens[panels++] = tokens;
    totalLanes += vectors * lanes;
    return start + tokens;
  }

  private void addGroup(int expert, int panel, int count, int tail, int tailCount) {
    if (groups == groupExpert.length) {
      int n = Math.max(64, 2 * groups);
      groupExpert = Arrays.copyOf(groupExpert, n);
      groupPanel = Arrays.copyOf(groupPanel, n);
      groupPanels = Arrays.copyOf(groupPanels, n);
      tailStart = Arrays.copyOf(tailStart, n);
      tailTokens = Arrays.copyOf(tailTokens, n);
    }
    groupExpert[groups] = expert;
    groupPanel[groups] = panel;
    groupPanels[groups] = count;
    tailStart[groups] = tail;
    tailTokens[groups++] = tailCount;
  }
}
