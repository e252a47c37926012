package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.device.WorkspaceLayout;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.GpuTest;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.TestInstance;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * The lists that the sort leaves, at the sizes that vLLM tests its alignment kernels with: plain,
 * with an expert map, with adapters, and for tokens that were dispatched already.
 */
@GpuTest
@TestInstance(TestInstance.Lifecycle.PER_CLASS)
class TileListsTest {
  private static final int PAGE = SlotTable.PAGE;
  private static final int RANK = 3 * PAGE;
  private static final ShrinkPlan NO_SHRINKS =
      new ShrinkPlan(false, true, false, 16, Shrink.NONE, Shrink.NONE);

  private CudaDevice device;
  private TileSort sort;

  @BeforeAll
  void open() {
    device = new CudaDeviceProvider().open(0);
    sort = new TileSort(new ExpertKernels(device));
  }

  @AfterAll
  void close() {
    if (device != null) {
      device.close();
    }
  }

  static Stream<Arguments> plain() {
    List<Arguments> all = new ArrayList<>();
    for (int tokens : new int[] {1, 3, 256, 2256, 4096}) {
      for (int topK : new int[] {1, 2, 16, 32}) {
        for (int experts : new int[] {32, 160, 256, 257}) {
          all.add(Arguments.of(tokens, topK, experts));
        }
      }
    }
    return all.stream();
  }

  @ParameterizedTest(name = "T={0} K={1} E={2}")
  @MethodSource("plain")
  void plain(int tokens, int topK, int experts) {
    check(tokens, topK, experts, experts, 0, new Random(tokens));
  }

  @ParameterizedTest(name = "T={0} K={1}")
  @MethodSource("mapped")
  void expertMap(int tokens, int topK) {
    check(tokens, topK, 8, 4, 0, new Random(tokens));
  }

  static Stream<Arguments> mapped() {
    return Stream.of(
        Arguments.of(16, 2), Arguments.of(16, 4), Arguments.of(32, 2), Arguments.of(32, 4));
  }

  static Stream<Arguments> adapters() {
    List<Arguments> all = new ArrayList<>();
    for (int tokens : new int[] {100, 200, 1024, 4096}) {
      for (int experts : new int[] {64, 128, 256, 512}) {
        for (int slots : new int[] {2, 32}) {
          all.add(Arguments.of(tokens, experts, slots));
        }
      }
    }
    return all.stream();
  }

  @ParameterizedTest(name = "T={0} E={1} slots {2}")
  @MethodSource("adapters")
  void adapters(int tokens, int experts, int slots) {
    check(tokens, 6, experts, experts, slots, new Random(tokens));
  }

  /** Twice: the order inside a segment is free, everything else is the same from run to run. */
  private void check(
      int tokens, int topK, int globalExperts, int experts, int slots, Random random) {
    int[] ids = new int[tokens * topK];
    for (int t = 0; t < tokens; t++) {
      List<Integer> order = new ArrayList<>();
      for (int e = 0; e < globalExperts; e++) {
        order.add(e);
      }
      java.util.Collections.shuffle(order, random);
      for (int k = 0; k < topK; k++) {
        ids[t * topK + k] = k < globalExperts ? order.get(k) : -1;
      }
    }
    int[] map = null;
    if (experts < globalExperts) {
      map = new int[globalExperts];
      Arrays.setAll(map, e -> e % 2 == 0 ? e / 2 : -1);
    }
    int[] mapping = new int[tokens];
    Arrays.setAll(mapping, t -> slots == 0 ? -1 : random.nextInt(slots + 1) - 1);
    Lists first = sort(tokens, topK, ids, map, mapping, globalExperts, experts, slots);
    first.check(ids, map, mapping);
    Lists second = sort(tokens, topK, ids, map, mapping, globalExperts, experts, slots);
    second.check(ids, map, mapping);
    assertThat(second.tiles).isEqualTo(first.tiles);
    assertThat(second.shrinkTiles).isEqualTo(first.shrinkTiles);
  }

  static Stream<Arguments> batched() {
    List<Arguments> all = new ArrayList<>();
    for (int rows : new int[] {16, 32, 256, 512}) {
      for (int experts : new int[] {8, 16, 32, 64}) {
        all.add(Arguments.of(rows, experts, false));
        all.add(Arguments.of(rows, experts, true));
      }
    }
    return all.stream();
  }

  @ParameterizedTest(name = "rows {0} E={1} half empty {2}")
  @MethodSource("batched")
  void dispatched(int rows, int experts, boolean halfEmpty) {
    Random random = new Random(rows);
    int[] counts = new int[experts];
    Arrays.setAll(counts, e -> halfEmpty && e % 2 == 0 ? 0 : random.nextInt(rows + 1));
    int[] ids = new int[experts * rows];
    Arrays.setAll(ids, p -> p % rows < counts[p / rows] ? p / rows : -1);
    int[] slots = new int[ids.length];
    Arrays.setAll(slots, p -> random.nextInt(4) - 1);
    int[] known = new int[ids.length];
    Arrays.setAll(known, p -> ids[p] < 0 ? -1 : slots[p]);
    try (Room room = new Room()) {
      Tensor there = room.ints(new int[ids.length]);
      Tensor slotsThere = room.ints(new int[ids.length]);
      PairBatch batch =
          batch(room, experts * rows, 1, there, null, slotsThere, experts, experts, 3);
      Tensor countsThere = room.ints(counts);
      sort.batchedIds(batch, countsThere, room.ints(slots).deviceAddress(), rows);
      assertThat(room.read(there)).isEqualTo(ids);
      assertThat(room.read(slotsThere)).isEqualTo(known);
      sort.batchedIds(batch, countsThere, 0, rows);
      assertThat(room.read(slotsThere)).as("untouched without adapters").isEqualTo(known);
    }
    int[] nobody = new int[ids.length];
    Arrays.fill(nobody, -1);
    sort(ids.length, 1, ids, null, nobody, experts, experts, 0).check(ids, null, nobody);
  }

  private Lists sort(
      int tokens,
      int topK,
      int[] ids,
      int @Nullable [] map,
      int[] mapping,
      int globalExperts,
      int experts,
      int slots) {
    try (Room room = new Room()) {
      Tensor there = room.ints(ids);
      Tensor mapThere = map == null ? null : room.ints(map);
      PairBatch batch =
          batch(
              room,
              tokens,
              topK,
              there,
              mapThere,
              slots == 0 ? null : room.ints(mapping),
              globalExperts,
              experts,
              slots);
      // As high as a backend would make them, and sometimes with split shrinks.
      int rows = Math.max(1, ids.length / experts);
      int tileRows = rows < 24 ? 16 : rows < 48 ? 32 : rows < 256 ? 64 : 128;
      int shrinkRows = slots == 0 || rows / slots < 32 ? 16 : 64;
      Shrink shrink = new Shrink(32, 64, false, RANK / PAGE, tokens % 2 == 0 ? 2 : 1);
      ShrinkPlan shrinks = new ShrinkPlan(false, true, false, shrinkRows, shrink, shrink);
      WorkspaceLayout layout = new WorkspaceLayout();
      TileLists at = new TileLists(layout, ids.length, experts, slots, batch.rank());
      long base = room.room(layout.byteSize());
      sort.run(batch, at, base, tileRows, slots == 0 ? NO_SHRINKS : shrinks);
      int[] nums = room.read(base + at.nums(), 2);
      if (slots > 0) {
        int[] arrived = room.read(base + at.arrived(), shrinks.counters(batch));
        assertThat(arrived).doesNotContain(0xa5a5a5a5);
      }
      return new Lists(
          topK,
          experts,
          tileRows,
          shrinkRows,
          room.read(base + at.pairs(), ids.length),
          room.read(base + at.posOf(), ids.length),
          slots == 0 ? new int[0] : room.read(base + at.segOf(), ids.length),
          room.read(base + at.tiles(), TileLists.TILE_WORDS * nums[0]),
          slots == 0 ? new int[0] : room.read(base + at.shrinkTiles(), 4 * nums[1]),
          slots);
    }
  }

  private PairBatch batch(
      Room room,
      int tokens,
      int topK,
      Tensor ids,
      @Nullable Tensor map,
      @Nullable Tensor mapping,
      int globalExperts,
      int experts,
      int slots) {
    long[] table = new long[Math.max(1, slots) * SlotTable.WIDTH];
    for (int s = 0; s < slots; s++) {
      table[s * SlotTable.WIDTH] = 1; // live
      table[s * SlotTable.WIDTH + 1] = pages13(s);
      table[s * SlotTable.WIDTH + 2] = pages2(s);
    }
    return new PairBatch(
        device.defaultStream(),
        ids.deviceAddress(),
        0,
        map == null ? 0 : map.deviceAddress(),
        mapping == null ? 0 : mapping.deviceAddress(),
        room.longs(table),
        tokens,
        topK,
        globalExperts,
        experts,
        slots,
        slots == 0 ? 0 : RANK);
  }

  private static int pages13(int slot) {
    return 1 + slot % 3;
  }

  private static int pages2(int slot) {
    return slot % 2;
  }

  /** What the kernels left, on the host. */
  private record Lists(
      int topK,
      int experts,
      int tileRows,
      int shrinkRows,
      int[] pairs,
      int[] posOf,
      int[] segOf,
      int[] tiles,
      int[] shrinkTiles,
      int slots) {
    void check(int[] ids, int @Nullable [] map, int[] mapping) {
      int[] expertOf = new int[ids.length];
      int[] counts = new int[experts];
      int rows = 0;
      for (int p = 0; p < ids.length; p++) {
        expertOf[p] = ids[p] < 0 ? -1 : map == null ? ids[p] : map[ids[p]];
        if (expertOf[p] < 0) {
          assertThat(posOf[p]).as("row of pair %d without expert", p).isEqualTo(-1);
        } else {
          assertThat(posOf[p]).isBetween(0, ids.length - 1);
          assertThat(pairs[posOf[p]]).as("pair in the row of pair %d", p).isEqualTo(p);
          counts[expertOf[p]]++;
          rows++;
        }
      }
      int row = 0;
      int tile = 0;
      for (int e = 0; e < experts; e++) {
        for (int done = 0; done < counts[e]; tile++) {
          int take = Math.min(tileRows, counts[e] - done);
          int at = TileLists.TILE_WORDS * tile;
          assertThat(Arrays.copyOfRange(tiles, at, at + 3))
              .as("expert, first and end row of tile %d", tile)
              .containsExactly(e, row, row + take);
          for (int r = row; r < row + take; r++) {
            if (expertOf[pairs[r]] != e) {
              throw new AssertionError("row " + r + " of tile " + tile + " is of another expert");
            }
          }
          row += take;
          done += take;
        }
      }
      assertThat(row).isEqualTo(rows);
      assertThat(tiles).hasSize(TileLists.TILE_WORDS * tile);
      if (slots > 0) {
        checkAdapters(expertOf, mapping, rows);
      }
    }

    private void checkAdapters(int[] expertOf, int[] mapping, int rows) {
      boolean[] covered = new boolean[rows];
      for (int t = 0; t < shrinkTiles.length; t += 4) {
        assertThat(shrinkTiles[t + 2] - shrinkTiles[t + 1]).isBetween(1, shrinkRows);
        for (int r = shrinkTiles[t + 1]; r < shrinkTiles[t + 2]; r++) {
          assertThat(covered[r]).isFalse();
          covered[r] = true;
          assertThat(expertOf[pairs[r]]).isEqualTo(shrinkTiles[t]);
          assertThat(mapping[pairs[r] / topK]).isEqualTo(shrinkTiles[t + 3]);
        }
      }
      int last = -1;
      int[][] pages13 = new int[rows][];
      int[][] pages2 = new int[rows][];
      int end13 = 0;
      int end2 = 0;
      for (int r = 0; r < rows; r++) {
        int slot = mapping[pairs[r] / topK];
        assertThat(covered[r]).as("row %d is in a shrink tile", r).isEqualTo(slot >= 0);
        if (slot < 0) {
          assertThat(segOf[r]).isEqualTo(-1);
          continue;
        }
        boolean same =
            r > 0
                && expertOf[pairs[r - 1]] == expertOf[pairs[r]]
                && mapping[pairs[r - 1] / topK] == slot;
        last = same ? last : last + 1;
        assertThat(segOf[r]).as("segment of row %d", r).isEqualTo(last);
        pages13[r] = same ? pages13[r - 1] : new int[] {end13, end13 + pages13(slot)};
        pages2[r] = same ? pages2[r - 1] : new int[] {end2, end2 + pages2(slot)};
        end13 = pages13[r][1];
        end2 = pages2[r][1];
      }
      for (int t = 0; t < tiles.length; t += TileLists.TILE_WORDS) {
        int first = tiles[t + 1];
        int end = tiles[t + 2];
        while (first < end && pages13[first] == null) {
          first++;
        }
        String tile = "row with an adapter and pages of the tile at row " + tiles[t + 1];
        int[] about = Arrays.copyOfRange(tiles, t + 4, t + TileLists.TILE_WORDS);
        if (first == end) {
          assertThat(tiles[t + 3]).as(tile).isGreaterThanOrEqualTo(end);
          assertThat(about).as(tile).containsExactly(0, 0, 0, 0);
        } else {
          assertThat(tiles[t + 3]).as(tile).isEqualTo(first);
          assertThat(about)
              .as(tile)
              .containsExactly(
                  pages13[first][0], pages13[end - 1][1], pages2[first][0], pages2[end - 1][1]);
        }
      }
    }
  }

  /** Buffers of one call. */
  private final class Room implements AutoCloseable {
    private final List<DeviceBuffer> buffers = new ArrayList<>();

    long room(long bytes) {
      DeviceBuffer b = device.allocate(bytes);
      buffers.add(b);
      device.fill(b.tensor(DType.U8, bytes), 0xa5, device.defaultStream());
      return b.memory().address();
    }

    Tensor ints(int[] values) {
      DeviceBuffer b = device.allocate(4L * values.length);
      buffers.add(b);
      Tensor t = b.tensor(DType.I32, values.length);
      device.copy(Tensor.ofInts(values, values.length), t, device.defaultStream());
      return t;
    }

    long longs(long[] values) {
      DeviceBuffer b = device.allocate(8L * values.length);
      buffers.add(b);
      Tensor host =
          Tensor.of(DType.I64, java.lang.foreign.MemorySegment.ofArray(values), values.length);
      device.copy(host, b.tensor(DType.I64, values.length), device.defaultStream());
      return b.memory().address();
    }

    int[] read(Tensor t) {
      int[] values = new int[Math.toIntExact(t.elementCount())];
      device.copy(t, Tensor.ofInts(values, values.length), device.defaultStream());
      device.defaultStream().synchronize();
      return values;
    }

    int[] read(long address, int count) {
      if (count == 0) {
        return new int[0];
      }
      return read(
          Tensor.of(
              DType.I32,
              new io.moe4j.api.tensor.DeviceMemory(device.info().id(), address, 4L * count),
              count));
    }

    @Override
    public void close() {
      device.defaultStream().synchronize();
      buffers.forEach(DeviceBuffer::close);
    }
  }
}
