package io.moe4j.backend.cpu;

import java.util.Arrays;

/**
 * In which order a region takes LoRA's tiles and those of the base product. LoRA's wait for memory,
 * a panel's for arithmetic, so they take turns: while one thread waits another one multiplies, and
 * deltas are still in a cache when they are added. Reused from call to call.
 */
final class TileOrder {
  private int[] order = new int[0];
  private int segments;

  /** Tiles of both kinds. */
  int count;

  void clear() {
    count = 0;
    segments = 0;
  }

  /**
   * Appends a tile of the base product.
   *
   * @param tile its index, {@code >= 0}
   * @param before LoRA's tiles {@code 0..before-1} come before it
   */
  void add(int tile, int before) {
    for (; segments < before; segments++) {
      append(~segments);
    }
    append(tile);
  }

  private void append(int v) {
    if (count == order.length) {
      order = Arrays.copyOf(order, Math.max(256, 2 * count));
    }
    order[count++] = v;
  }

  /** {@return the tile of the base product that comes {@code i}-th; negative: {@code ~segment}} */
  int get(int i) {
    return order[i];
  }
}
