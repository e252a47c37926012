package io.moe4j.cuda.ops;

import io.moe4j.api.device.WorkspaceLayout;

/**
 * Where {@link ShrinkKernel} leaves its results, as byte offsets in a workspace.
 *
 * @param first 16-bit {@code [P, rank]}, with a gate {@code [P, 2 * rank]}
 * @param second 16-bit {@code [P, rank]}
 * @param partial sums of split shrinks, f32
 * @since 0.2.0
 */
public record ShrinkScratch(long first, long second, long partial) {
  /** What split shrinks may leave in memory; fewer splits are made rather than more than this. */
  static final long PARTIAL_BYTES = 8L << 20;

  private static final int ELEMENT = 2;

  /**
   * Reserves it.
   *
   * @param layout where it goes
   * @param pairs {@code P}
   * @param gated whether the first shrink has two halves
   * @param slots 0 without LoRA
   * @param rank padded to a page
   * @return the offsets
   */
  public static ShrinkScratch reserve(
      WorkspaceLayout layout, long pairs, boolean gated, int slots, int rank) {
    return new ShrinkScratch(
        layout.reserve(ELEMENT * pairs * rank * (gated ? 2 : 1)),
        layout.reserve(ELEMENT * pairs * rank),
        layout.reserve(slots > 0 ? PARTIAL_BYTES : 0));
  }
}
