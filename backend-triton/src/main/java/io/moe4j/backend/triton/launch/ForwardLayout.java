package io.moe4j.backend.triton.launch;

import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.ShrinkScratch;
import io.moe4j.cuda.ops.TileLists;

/**
 * Where the parts of one forward's scratch lie, as byte offsets. All sizes grow with tokens, slots
 * and rank, so the layout of the largest forward bounds every other.
 */
final class ForwardLayout {
  private static final int INT = 4;
  private static final int ELEMENT = 2;

  private final long byteSize;

  final long hidden;
  final long output;
  final long ids;
  final long slotOf;
  final long sorted;
  final long middle;
  final long y;
  final TileLists lists;
  final ShrinkScratch shrinks;
  final ComposedLora.Scratch composed;

  /**
   * @param tokens {@code T} (BATCHED: all rows)
   * @param topK {@code K}
   * @param experts local
   * @param hiddenSize width of the experts' input and output
   * @param intermediate {@code I}
   * @param gated whether s of the first shrink has two halves
   * @param slots 0 without LoRA
   * @param rank padded to a page
   * @param copyHidden whether the hidden states need room in the weights' dtype
   * @param outputBytes bytes an element of the output takes where it needs room here; 0 = it does
   *     not
   * @param batched whether ids, and with LoRA slots, are made here
   * @param deltaRows rows of deltas that are computed beside the products; 0 = they are added to
   *     them; -1 = the products have them
   */
  ForwardLayout(
      int tokens,
      int topK,
      int experts,
      int hiddenSize,
      int intermediate,
      boolean gated,
      int slots,
      int rank,
      boolean copyHidden,
      int outputBytes,
      boolean batched,
      int deltaRows) {
    long p = (long) tokens * topK;
    WorkspaceLayout layout = new WorkspaceLayout();
    hidden = layout.reserve(copyHidden ? ELEMENT * (long) tokens * hiddenSize : 0);
    output = layout.reserve((long) outputBytes * tokens * hiddenSize);
    ids = layout.reserve(batched ? INT * p : 0);
    slotOf = layout.reserve(batched && slots > 0 ? INT * p : 0);
    sorted = layout.reserve(ELEMENT * p * hiddenSize);
    middle = layout.reserve(ELEMENT * p * intermediate);
    y = layout.reserve(ELEMENT * p * hiddenSize);
    lists = new TileLists(layout, p, experts, slots, rank);
    shrinks = ShrinkScratch.reserve(layout, p, gated, slots, rank);
    long width = gated ? 2L * intermediate : intermediate;
    composed =
        ComposedLora.Scratch.reserve(layout, deltaRows < 0 ? 0 : p, hiddenSize, width, deltaRows);
    byteSize = layout.byteSize();
  }

  /** {@return bytes of the whole} */
  long byteSize() {
    return byteSize;
  }
}
