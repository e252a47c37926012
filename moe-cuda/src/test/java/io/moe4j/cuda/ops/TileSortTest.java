package io.moe4j.cuda.ops;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

final class TileSortTest {
  /** Counted by hand from the arrays of {@code tile_sort.cu}, four bytes an entry. */
  @ParameterizedTest
  @CsvSource({
    // pairs, experts, slots: three entries a key and one more, tiles of experts, pairs
    "128, 128, 0, 2564",
    "4096, 512, 0, 24580",
    // six entries a key, a table row of 192 bytes a slot
    "128, 128, 1, 7364",
    "1, 8, 2, 1000",
  })
  void sharedMemoryHoldsEveryArray(int pairs, int experts, int slots, long bytes) {
    assertThat(TileSort.sharedBytes(pairs, experts, slots)).isEqualTo(bytes);
  }

  @Test
  void kernelIsCompiledForWhatEveryCardHas() {
    assertThat(SharedKernels.LIBRARY.kernels())
        .filteredOn(k -> k.name().equals(TileSort.KERNEL))
        .hasSize(4)
        .allMatch(k -> k.sharedBytes() == TileSort.SHARED_BYTES);
  }

  @Test
  void blocksAreAddedWithThePairsUpToEight() {
    assertThat(TileSort.blocks(1, true)).isEqualTo(1);
    assertThat(TileSort.blocks(2048, true)).isEqualTo(1);
    assertThat(TileSort.blocks(2049, true)).isEqualTo(2);
    assertThat(TileSort.blocks(65536, true)).isEqualTo(8);
    assertThat(TileSort.blocks(1 << 20, true)).isEqualTo(8);
    assertThat(TileSort.blocks(65536, false)).isEqualTo(1);
  }

  /** 8192 tokens with top 8 and 32 adapters on a card with clusters, 128 tokens on any. */
  @Test
  void manyAdaptersFit() {
    assertThat(TileSort.sharedBytes(8192, 128, 32))
        .isLessThanOrEqualTo(TileSort.HOPPER_SHARED_BYTES);
    assertThat(TileSort.sharedBytes(1024, 128, 16)).isLessThanOrEqualTo(TileSort.SHARED_BYTES);
  }
}
