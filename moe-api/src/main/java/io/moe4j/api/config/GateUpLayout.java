package io.moe4j.api.config;

/**
 * How gate and up share the {@code 2I} rows (or columns) of something stacked.
 *
 * @since 0.1.0
 */
public enum GateUpLayout {
  /** The first {@code I} are gate, the last {@code I} up. */
  HALVES,
  /** Even ones are gate, odd ones up (gpt-oss). */
  INTERLEAVED;

  /**
   * {@return where row {@code i} of a projection stands}
   *
   * @param up false for gate
   * @param i {@code 0..intermediateSize-1}
   * @param intermediateSize {@code I}
   */
  public int index(boolean up, int i, int intermediateSize) {
    return this == HALVES ? (up ? intermediateSize + i : i) : 2 * i + (up ? 1 : 0);
  }
}
