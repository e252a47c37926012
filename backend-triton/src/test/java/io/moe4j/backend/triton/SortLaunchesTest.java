package io.moe4j.backend.triton;

import static org.assertj.core.api.Assertions.assertThat;

import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

final class SortLaunchesTest {
  /** Counted by hand from the arrays of {@code sort.cu}, four bytes an entry. */
  @ParameterizedTest
  @CsvSource({
    // pairs, experts, slots: counts, rows and tiles of experts, pairs
    "128, 128, 0, 2052",
    "4096, 512, 0, 22532",
    // and marks, segments of rows, of 128 segments key and pages, a table row of 192 bytes
    "128, 128, 1, 5836",
    "1, 8, 2, 672",
  })
  void sharedMemoryHoldsEveryArray(int pairs, int experts, int slots, long bytes) {
    assertThat(SortLaunches.sharedBytes(pairs, experts, slots)).isEqualTo(bytes);
  }

  @Test
  void kernelIsCompiledForTheMostThatIsAskedOfIt() {
    assertThat(TritonKernels.cudaLibrary().kernels())
        .filteredOn(k -> k.name().equals("sort"))
        .hasSize(4)
        .allMatch(k -> k.sharedBytes() == SortLaunches.ONE_BLOCK_BYTES);
  }

  /** What the sizes of real batches need: a decode batch of 128 tokens with 32 adapters. */
  @Test
  void aDecodeBatchWithManyAdaptersFits() {
    assertThat(SortLaunches.sharedBytes(1024, 128, 32))
        .isLessThanOrEqualTo(SortLaunches.ONE_BLOCK_BYTES);
    assertThat(SortLaunches.sharedBytes(4096, 512, 64)).isGreaterThan(SortLaunches.ONE_BLOCK_BYTES);
  }
}
