package io.moe4j.backend.triton;

import io.moe4j.api.device.Workspace;

/**
 * Where the parts of one forward's scratch lie, as byte offsets. All sizes grow with tokens, slots
 * and rank, so the layout of the largest forward bounds every other.
 */
final class ForwardLayout {
  /** What split shrinks may leave in memory; fewer splits are made rather than more than this. */
  static final long PARTIAL_BYTES = 8L << 20;

  private static final int INT = 4;
  private static final int LONG = 8;
  private static final int ELEMENT = 2;
  private static final int PAGE = 16;
  private static final int STATS = 4;

  /** Of a GEMM tile, as in {@code table.py}. */
  static final int TILE_WORDS = 8;

  private long end;

  final long hidden;
  final long output;
  final long ids;
  final long slotOf;
  final long sorted;
  final long middle;
  final long y;
  final long keyOf;
  final long rankOf;
  final long pairs;
  final long posOf;
  final long segOf;
  final long off;
  final long tileOff;
  final long nums;
  final long tiles;
  final long shrinkTiles;
  final long segId;
  final long shrinkOff;
  final long segPages13;
  final long segPages2;
  final long pages13a;
  final long pages13b;
  final long pages13m;
  final long pages2a;
  final long pages2m;
  final long s1;
  final long s2;
  final long zero;
  final long stats;
  final long arrived;
  final int zeroInts;
  final long partial;
  final long wide;
  final long delta;
  final long rowExperts;
  final long rowSlots;
  final long rowWeights;

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
    long keys = (long) experts * (slots + 1);
    long segments = Math.min(p, (long) experts * slots);
    long pages = segments * (rank / PAGE);
    hidden = take(copyHidden ? ELEMENT * (long) tokens * hiddenSize : 0);
    output = take((long) outputBytes * tokens * hiddenSize);
    ids = take(batched ? INT * p : 0);
    slotOf = take(batched && slots > 0 ? INT * p : 0);
    sorted = take(ELEMENT * p * hiddenSize);
    middle = take(ELEMENT * p * intermediate);
    y = take(ELEMENT * p * hiddenSize);
    keyOf = take(INT * p);
    rankOf = take(INT * p);
    pairs = take(INT * p);
    posOf = take(INT * p);
    segOf = take(INT * p);
    off = take(INT * (keys + 1));
    tileOff = take(INT * (long) experts);
    nums = take(INT * 4);
    tiles = take(INT * TILE_WORDS * p);
    shrinkTiles = take(slots > 0 ? INT * 4 * p : 0);
    segId = take(slots > 0 ? INT * keys : 0);
    shrinkOff = take(slots > 0 ? INT * keys : 0);
    segPages13 = take(slots > 0 ? INT * segments : 0);
    segPages2 = take(slots > 0 ? INT * segments : 0);
    pages13a = take(LONG * pages);
    pages13b = take(LONG * pages);
    pages13m = take(LONG * pages);
    pages2a = take(LONG * pages);
    pages2m = take(LONG * pages);
    s1 = take(ELEMENT * p * rank * (gated ? 2 : 1));
    s2 = take(ELEMENT * p * rank);
    // One range, cleared at once: counts, statistics, arrival counters of the split shrinks.
    zero = end;
    stats = zero + INT * keys;
    arrived = stats + (slots > 0 ? INT * (long) STATS * experts : 0);
    long counters = slots > 0 ? p * Math.max(1, rank / PAGE) : 0;
    zeroInts = Math.toIntExact((arrived - zero) / INT);
    take(arrived - zero + INT * counters);
    partial = take(slots > 0 ? PARTIAL_BYTES : 0);
    long width = gated ? 2L * intermediate : intermediate;
    boolean composed = deltaRows >= 0;
    wide = take(composed ? ELEMENT * p * width : 0);
    delta = take(composed ? (long) ELEMENT * deltaRows * Math.max(width, hiddenSize) : 0);
    rowExperts = take(composed ? INT * p : 0);
    rowSlots = take(composed ? INT * p : 0);
    rowWeights = take(composed ? INT * p : 0);
  }

  private long take(long bytes) {
    long at = end;
    end += Workspace.align(bytes);
    return at;
  }

  /** {@return bytes of the whole} */
  long byteSize() {
    return end;
  }
}
