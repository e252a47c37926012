package io.moe4j.cuda.ops;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.Kernel;
import io.moe4j.cuda.KernelLaunch;
import org.jspecify.annotations.Nullable;

/**
 * Sorts the (token, k) pairs of a batch by local expert and, with LoRA, by adapter within it:
 * stable in the pair's number, so that two runs give the same order; see {@code sort.cu}. One
 * launch for small batches, two for large ones. Everything stays on the device. Safe for several
 * threads.
 */
public final class PairSort {
  /**
   * Up to this many pairs one launch does all: every block counts for itself. On an H200 with 128
   * experts the two ways meet near 2048 pairs.
   */
  static final int FUSED_PAIRS = 1024;

  private static final int WARPS = 32;
  private static final int SCRATCH_WORDS = WARPS + 3;
  private static final int FUSED_SHARED_LIMIT = 48 * 1024;
  private static final int MAX_KEYS = 0xffff;

  private final Kernel sort;
  private final Kernel gather;
  private final Kernel place;
  private final int columns;
  private final int fusedPairs;

  /**
   * Loads the kernels.
   *
   * @param device where to run
   * @param slots adapters slots to tell apart, 0 without LoRA
   * @throws DeviceException if so many slots do not fit the device's shared memory
   */
  public PairSort(CudaDevice device, int slots) {
    this(device, slots, FUSED_PAIRS);
  }

  /** With another limit for the one-launch way, so that both can be tested and timed. */
  PairSort(CudaDevice device, int slots, int fusedPairs) {
    this.columns = slots + 1;
    this.fusedPairs = fusedPairs;
    sort = SharedKernels.load(device, "pair_sort");
    gather = SharedKernels.load(device, "pair_gather");
    place = SharedKernels.load(device, "pair_place");
    place.allowSharedBytes(placeBytes(columns));
  }

  private static int placeBytes(int columns) {
    return 4 * SCRATCH_WORDS * columns;
  }

  /** What one launch takes in shared memory, or -1 where two are needed. */
  static int fusedBytes(int pairs, int experts, int columns, int fusedPairs) {
    if (pairs > fusedPairs || (long) experts * columns >= MAX_KEYS) {
      return -1;
    }
    long bytes = 4L * experts * columns + placeBytes(columns) + 2L * pairs;
    return bytes <= FUSED_SHARED_LIMIT ? (int) bytes : -1;
  }

  /**
   * Where the results of a sort lie in its memory: a pure function of the sizes. All are int32.
   *
   * @param pairs {@code P = T * K}
   * @param experts local experts
   * @param columns adapter slots + 1, 1 without LoRA
   * @param tileRows rows of a GEMM tile
   * @param shrinkRows rows of a shrink tile
   * @param maxTiles no routing gives more GEMM tiles
   * @param maxShrinkTiles no routing gives more shrink tiles
   * @param maxSegments no routing gives more segments
   * @param off byte offset of {@code [experts * columns + 1]}: first row of each key, rows in all
   * @param pairOfRow byte offset of {@code [P]}
   * @param rowOfPair byte offset of {@code [P]}, -1 = the pair has no local expert
   * @param tiles byte offset of {@code [maxTiles, 4]}: expert, first row, end, first row with an
   *     adapter (at or past the end: none)
   * @param shrinkTiles byte offset of {@code [maxShrinkTiles, 4]}: expert, first row, end, slot
   * @param segments byte offset of {@code [maxSegments]}: the slot of each
   * @param segmentOfRow byte offset of {@code [P]}, -1 = base row
   * @param counts byte offset of {@code [4]}: tiles, shrink tiles, rows, segments
   * @param keyCounts byte offset of {@code [experts * columns]}, scratch
   * @param summaries byte offset of {@code [experts, 4]}, scratch
   * @param lists byte offset of {@code [P]}, scratch
   * @param byteSize of all of it
   */
  public record Layout(
      int pairs,
      int experts,
      int columns,
      int tileRows,
      int shrinkRows,
      int maxTiles,
      int maxShrinkTiles,
      int maxSegments,
      long off,
      long pairOfRow,
      long rowOfPair,
      long tiles,
      long shrinkTiles,
      long segments,
      long segmentOfRow,
      long counts,
      long keyCounts,
      long summaries,
      long lists,
      long byteSize) {

    /**
     * Lays the results out.
     *
     * @param pairs {@code P}
     * @param experts local experts, at least 1
     * @param slots adapter slots, 0 without LoRA
     * @param tileRows at least 1
     * @param shrinkRows at least 1
     * @return the layout; its size grows with each argument but the last two
     */
    public static Layout of(int pairs, int experts, int slots, int tileRows, int shrinkRows) {
      if (pairs < 0 || experts < 1 || slots < 0 || tileRows < 1 || shrinkRows < 1) {
        throw new IllegalArgumentException(
            "pairs "
                + pairs
                + ", experts "
                + experts
                + ", slots "
                + slots
                + ", tileRows "
                + tileRows
                + ", shrinkRows "
                + shrinkRows
                + ": one is out of range");
      }
      int columns = slots + 1;
      int keys = Math.multiplyExact(experts, columns);
      // Every expert (or segment) with rows ends in at most one tile that is not full.
      int maxTiles = Math.min(pairs, pairs / tileRows + Math.min(experts, pairs));
      int maxSegments = (int) Math.min(pairs, (long) experts * slots);
      int maxShrinkTiles = Math.min(pairs, pairs / shrinkRows + maxSegments);
      WorkspaceLayout layout = new WorkspaceLayout();
      return new Layout(
          pairs,
          experts,
          columns,
          tileRows,
          shrinkRows,
          maxTiles,
          maxShrinkTiles,
          maxSegments,
          ints(layout, keys + 1L),
          ints(layout, pairs),
          ints(layout, pairs),
          ints(layout, 4L * maxTiles),
          ints(layout, 4L * maxShrinkTiles),
          ints(layout, maxSegments),
          ints(layout, pairs),
          ints(layout, 4),
          ints(layout, keys),
          ints(layout, 4L * experts),
          ints(layout, pairs),
          layout.byteSize());
    }

    private static long ints(WorkspaceLayout layout, long count) {
      return layout.reserve(Integer.BYTES * count);
    }
  }

  /**
   * Sorts.
   *
   * @param routing ids, and the map where there is one; {@code [T, K]}
   * @param tokenLoraMapping int32 {@code [T]}, slot or -1; null = no adapters
   * @param slotActive int32 {@code [slots]}, 0 = the slot changes nothing in this layer and its
   *     tokens count as base; null = all are active
   * @param layout for this many pairs and these slots
   * @param address device address of {@code layout.byteSize()} bytes, a multiple of 64
   * @param stream where to run
   */
  public void run(
      ExpertRouting routing,
      @Nullable Tensor tokenLoraMapping,
      @Nullable Tensor slotActive,
      Layout layout,
      long address,
      DeviceStream stream) {
    Tensor ids = routing.topkIds();
    Tensor map = routing.expertMap();
    if (ids.elementCount() != layout.pairs()
        || layout.columns() > columns
        || (tokenLoraMapping == null) != (layout.columns() == 1)) {
      throw new IllegalArgumentException(
          "topkIds is "
              + ids
              + ", the mapping "
              + tokenLoraMapping
              + "; the layout is for "
              + layout.pairs()
              + " pairs and "
              + (layout.columns() - 1)
              + " slots, this sort for "
              + (columns - 1));
    }
    if (tokenLoraMapping != null
        && (tokenLoraMapping.dtype() != DType.I32
            || tokenLoraMapping.elementCount() != ids.size(0))) {
      throw new IllegalArgumentException(
          "tokenLoraMapping is " + tokenLoraMapping + ", must be I32[" + ids.size(0) + "]");
    }
    if (layout.pairs() == 0) {
      return;
    }
    int k = SharedKernels.size("K", ids.size(1));
    int global = map == null ? layout.experts() : SharedKernels.size("E", map.size(0));
    int fused = fusedBytes(layout.pairs(), layout.experts(), layout.columns(), fusedPairs);
    if (fused < 0) {
      gather
          .begin()
          .pointer(ids)
          .pointer(map)
          .pointer(tokenLoraMapping)
          .pointer(slotActive)
          .pointer(address + layout.keyCounts())
          .pointer(address + layout.summaries())
          .pointer(address + layout.lists())
          .pointer(address + layout.rowOfPair())
          .i32(layout.pairs())
          .i32(k)
          .i32(global)
          .i32(layout.experts())
          .i32(layout.columns())
          .i32(layout.tileRows())
          .i32(layout.shrinkRows())
          .sharedBytes(4 * layout.columns())
          .launch(stream, layout.experts());
    }
    KernelLaunch launch = (fused < 0 ? place : sort).begin();
    launch.pointer(ids).pointer(map).pointer(tokenLoraMapping).pointer(slotActive);
    if (fused < 0) {
      launch
          .pointer(address + layout.keyCounts())
          .pointer(address + layout.summaries())
          .pointer(address + layout.lists());
    }
    launch
        .pointer(address + layout.off())
        .pointer(address + layout.pairOfRow())
        .pointer(address + layout.rowOfPair())
        .pointer(address + layout.tiles())
        .pointer(address + layout.shrinkTiles())
        .pointer(address + layout.segments())
        .pointer(address + layout.segmentOfRow())
        .pointer(address + layout.counts())
        .i32(layout.pairs())
        .i32(k)
        .i32(global)
        .i32(layout.experts())
        .i32(layout.columns())
        .i32(layout.tileRows())
        .i32(layout.shrinkRows())
        .sharedBytes(fused < 0 ? placeBytes(layout.columns()) : fused)
        .launch(stream, layout.experts());
  }
}
