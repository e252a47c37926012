package io.moe4j.cuda.ops;

import io.moe4j.api.device.WorkspaceLayout;

/**
 * Where {@link TileSort} leaves its lists, as byte offsets in a workspace; {@code sort.py} says
 * what a list means. All sizes grow with tokens, slots and rank, so the lists of the largest
 * forward bound every other's. Immutable.
 *
 * @since 0.2.0
 */
public final class TileLists {
  /** int32 words of a GEMM tile, as in {@code table.py}. */
  public static final int TILE_WORDS = 8;

  private static final int SHRINK_WORDS = 4;
  private static final int STATS = 4;

  final long keyOf;
  final long rankOf;
  final long off;
  final long tileOff;
  final long segId;
  final long shrinkOff;
  final long segPages13;
  final long segPages2;
  final long zero;
  final long stats;
  final int zeroInts;
  private final long pairs;
  private final long posOf;
  private final long segOf;
  private final long nums;
  private final long tiles;
  private final long shrinkTiles;
  private final long pages13First;
  private final long pages13Second;
  private final long pages13Words;
  private final long pages2First;
  private final long pages2Words;
  private final long arrived;
  private final long rowCount;

  /**
   * Reserves the lists.
   *
   * @param layout where they go
   * @param pairs {@code P}
   * @param experts local
   * @param slots 0 without LoRA
   * @param rank padded to a page
   */
  public TileLists(WorkspaceLayout layout, long pairs, int experts, int slots, int rank) {
    long keys = (long) experts * (slots + 1);
    long segments = Math.min(pairs, (long) experts * slots);
    long pages = segments * (rank / SlotTable.PAGE);
    boolean lora = slots > 0;
    keyOf = ints(layout, pairs);
    rankOf = ints(layout, pairs);
    this.pairs = ints(layout, pairs);
    posOf = ints(layout, pairs);
    segOf = ints(layout, pairs);
    off = ints(layout, keys + 1);
    rowCount = off + Integer.BYTES * keys;
    tileOff = ints(layout, experts);
    nums = ints(layout, 4);
    tiles = ints(layout, TILE_WORDS * pairs);
    shrinkTiles = ints(layout, lora ? SHRINK_WORDS * pairs : 0);
    segId = ints(layout, lora ? keys : 0);
    shrinkOff = ints(layout, lora ? keys : 0);
    segPages13 = ints(layout, segments);
    segPages2 = ints(layout, segments);
    pages13First = layout.reserve(Long.BYTES * pages);
    pages13Second = layout.reserve(Long.BYTES * pages);
    pages13Words = layout.reserve(Long.BYTES * pages);
    pages2First = layout.reserve(Long.BYTES * pages);
    pages2Words = layout.reserve(Long.BYTES * pages);
    // One range, cleared at once: counts, statistics, arrival counters of the split shrinks.
    long counters = lora ? pairs * Math.max(1, rank / SlotTable.PAGE) : 0;
    long statsInts = lora ? (long) STATS * experts : 0;
    zeroInts = Math.toIntExact(keys + statsInts);
    zero = ints(layout, zeroInts + counters);
    stats = zero + Integer.BYTES * keys;
    arrived = stats + Integer.BYTES * statsInts;
  }

  private static long ints(WorkspaceLayout layout, long count) {
    return layout.reserve(Integer.BYTES * count);
  }

  /** {@return offset of int32 {@code [P]}: the pair in each row} */
  public long pairs() {
    return pairs;
  }

  /** {@return offset of int32 {@code [P]}: the row of each pair, -1 = it has no local expert} */
  public long posOf() {
    return posOf;
  }

  /** {@return offset of int32 {@code [P]}: the segment of each row, -1 = no adapter} */
  public long segOf() {
    return segOf;
  }

  /** {@return offset of two int32: GEMM tiles, shrink tiles} */
  public long nums() {
    return nums;
  }

  /** {@return offset of one int32: rows in use} */
  public long rowCount() {
    return rowCount;
  }

  /** {@return offset of int32 {@code [tiles, 8]}} */
  public long tiles() {
    return tiles;
  }

  /** {@return offset of int32 {@code [shrink tiles, 4]}: expert, first row, end row, slot} */
  public long shrinkTiles() {
    return shrinkTiles;
  }

  /** {@return offset of int64 {@code [pages]}: B of the gate projection, or of the only one} */
  public long pages13First() {
    return pages13First;
  }

  /** {@return offset of int64 {@code [pages]}: B of the up projection} */
  public long pages13Second() {
    return pages13Second;
  }

  /** {@return offset of int64 {@code [pages]}: everything else of a page of w13} */
  public long pages13Words() {
    return pages13Words;
  }

  /** {@return offset of int64 {@code [pages]}: B of the down projection} */
  public long pages2First() {
    return pages2First;
  }

  /** {@return offset of int64 {@code [pages]}: everything else of a page of w2} */
  public long pages2Words() {
    return pages2Words;
  }

  /** {@return offset of the arrival counters of split shrinks, int32, zero between forwards} */
  public long arrived() {
    return arrived;
  }
}
