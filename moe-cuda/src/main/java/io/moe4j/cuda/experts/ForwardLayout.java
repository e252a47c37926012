package io.moe4j.cuda.experts;

import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.PaddedSizes;
import io.moe4j.cuda.ops.ShrinkScratch;
import io.moe4j.cuda.ops.TileLists;

/**
 * Where the parts of one forward's scratch lie, as byte offsets. All sizes grow with tokens, slots
 * and rank, so the layout of the largest forward bounds every other. {@code P} is {@code tokens *
 * topK}, sizes are padded. Immutable.
 *
 * @since 0.2.0
 */
public final class ForwardLayout {
  private static final int ELEMENT = 2;

  /**
   * What it depends on.
   *
   * @param tokens {@code T} (BATCHED: all rows)
   * @param topK {@code K}
   * @param experts local
   * @param sizes of the layer
   * @param gated whether s of the first shrink has two halves
   * @param batched whether ids, and with LoRA slots, are made here
   * @param slots 0 without LoRA
   * @param rank padded to a page
   * @param copyHidden whether the hidden states need room in the weights' dtype
   * @param outputBytes bytes an element of the output takes where it needs room here; 0 = it does
   *     not
   * @param ownBytes {@link GroupedProducts#ownBytes}
   * @param deltaRows rows of deltas that are computed beside the products; 0 = they are added to
   *     them; -1 = the products have them
   */
  record Sizes(
      int tokens,
      int topK,
      int experts,
      PaddedSizes sizes,
      boolean gated,
      boolean batched,
      int slots,
      int rank,
      boolean copyHidden,
      int outputBytes,
      long ownBytes,
      int deltaRows) {
    boolean composed() {
      return deltaRows >= 0;
    }
  }

  private final long byteSize;
  private final long hidden;
  private final long output;
  private final long ids;
  private final long slotOf;
  private final long sorted;
  private final long own;
  private final long middle;
  private final long y;
  private final TileLists lists;
  private final ShrinkScratch shrinks;
  private final ComposedLora.Scratch composed;

  ForwardLayout(Sizes s) {
    long tokens = s.tokens();
    long p = tokens * s.topK();
    int h = s.sizes().hidden();
    long i = s.sizes().intermediate();
    WorkspaceLayout layout = new WorkspaceLayout();
    hidden = layout.reserve(s.copyHidden() ? ELEMENT * tokens * h : 0);
    output = layout.reserve(s.outputBytes() * tokens * h);
    ids = layout.reserve(s.batched() ? Integer.BYTES * p : 0);
    slotOf = layout.reserve(s.batched() && s.slots() > 0 ? Integer.BYTES * p : 0);
    sorted = layout.reserve(s.composed() ? ELEMENT * p * h : 0);
    own = layout.reserve(s.ownBytes());
    middle = layout.reserve(ELEMENT * p * i);
    y = layout.reserve(ELEMENT * p * h);
    lists = new TileLists(layout, p, s.experts(), s.slots(), s.rank());
    shrinks = ShrinkScratch.reserve(layout, p, s.gated(), s.slots(), s.rank());
    composed =
        ComposedLora.Scratch.reserve(
            layout, s.composed() ? p : 0, h, s.gated() ? 2 * i : i, s.deltaRows());
    byteSize = layout.byteSize();
  }

  /** {@return bytes of the whole} */
  public long byteSize() {
    return byteSize;
  }

  /** Offset of 16-bit {@code [T, H]}: the hidden states, where they are not read as they lie. */
  long hidden() {
    return hidden;
  }

  /** Offset of {@code [T, H]}: the output, where it is not written as it lies. */
  long output() {
    return output;
  }

  /** Offset of int32 {@code [P]}: the experts of the rows of a BATCHED call. */
  long ids() {
    return ids;
  }

  /** Offset of int32 {@code [P]}: the slots of the rows of a BATCHED call. */
  long slotOf() {
    return slotOf;
  }

  /** Offset of 16-bit {@code [P, H]}: the rows of a composed forward. */
  long sorted() {
    return sorted;
  }

  /** {@return offset of {@link GroupedProducts#ownBytes}} */
  public long own() {
    return own;
  }

  /** {@return offset of 16-bit {@code [P, I]}: after the activation} */
  public long middle() {
    return middle;
  }

  /** {@return offset of 16-bit {@code [P, H]}: what w2 gave} */
  public long y() {
    return y;
  }

  /** {@return what the sort leaves} */
  public TileLists lists() {
    return lists;
  }

  /** {@return what the shrinks leave} */
  public ShrinkScratch shrinks() {
    return shrinks;
  }

  /** What only composed forwards need. */
  ComposedLora.Scratch composed() {
    return composed;
  }
}
