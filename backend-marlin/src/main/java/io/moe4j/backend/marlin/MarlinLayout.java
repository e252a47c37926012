package io.moe4j.backend.marlin;

import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.ShrinkScratch;
import io.moe4j.cuda.ops.TileLists;

/**
 * Where the parts of one forward's scratch lie, as byte offsets. All sizes grow with tokens, slots
 * and rank, so the layout of the largest forward bounds every other.
 */
final class MarlinLayout {
  private static final int INT = 4;
  private static final int ELEMENT = 2;

  /**
   * What it depends on.
   *
   * @param tokens {@code T} (BATCHED: all rows)
   * @param topK {@code K}
   * @param experts local
   * @param sizes padded
   * @param gated whether s of the first shrink has two halves
   * @param ordered13 inputs of w13 in the order of its groups; 0 = x is read as it is
   * @param ordered2 the same of w2
   * @param batched whether ids, and with LoRA slots, are made here
   * @param deltaRows rows of deltas that are computed beside the products; 0 = they are added to
   *     them; -1 = the products have them
   */
  record Sizes(
      int tokens,
      int topK,
      int experts,
      PaddedSizes sizes,
      boolean gated,
      long ordered13,
      long ordered2,
      boolean batched,
      int deltaRows) {}

  private final long byteSize;

  final long hidden;
  final long output;
  final long ids;
  final long slotOf;
  final long sorted;
  final long orderedInput;
  final long middle;
  final long orderedMiddle;
  final long y;
  final TileLists lists;
  final ShrinkScratch shrinks;
  final ComposedLora.Scratch composed;

  /**
   * @param s the forward's sizes
   * @param slots 0 without LoRA
   * @param rank padded to a page
   * @param copyHidden whether the hidden states need room in the weights' dtype
   * @param outputBytes bytes an element of the output takes where it needs room here; 0 = it does
   *     not
   */
  MarlinLayout(Sizes s, int slots, int rank, boolean copyHidden, int outputBytes) {
    long p = (long) s.tokens() * s.topK();
    long tokens = s.tokens();
    WorkspaceLayout layout = new WorkspaceLayout();
    hidden = layout.reserve(copyHidden ? ELEMENT * tokens * s.sizes().hidden() : 0);
    output = layout.reserve(outputBytes * tokens * s.sizes().hidden());
    ids = layout.reserve(s.batched() ? INT * p : 0);
    slotOf = layout.reserve(s.batched() && slots > 0 ? INT * p : 0);
    boolean compose = s.deltaRows() >= 0;
    int h = s.sizes().hidden();
    long i = s.sizes().intermediate();
    sorted = layout.reserve(compose ? ELEMENT * p * h : 0);
    orderedInput = layout.reserve(ELEMENT * p * s.ordered13());
    middle = layout.reserve(ELEMENT * p * s.sizes().intermediate());
    orderedMiddle = layout.reserve(ELEMENT * p * s.ordered2());
    y = layout.reserve(ELEMENT * p * s.sizes().hidden());
    lists = new TileLists(layout, p, s.experts(), slots, rank);
    shrinks = ShrinkScratch.reserve(layout, p, s.gated(), slots, rank);
    composed =
        ComposedLora.Scratch.reserve(
            layout, compose ? p : 0, h, s.gated() ? 2 * i : i, s.deltaRows());
    byteSize = layout.byteSize();
  }

  /** {@return bytes of the whole} */
  long byteSize() {
    return byteSize;
  }
}
