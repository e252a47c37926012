package io.moe4j.cuda.experts;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.LoraMode;
import io.moe4j.cuda.ops.PaddedSizes;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class ForwardLayoutTest {
  private static final PaddedSizes SIZES = new PaddedSizes(96, 40);

  /** A workspace for the most tokens, slots and ranks serves every smaller call. */
  @Test
  void layoutGrowsWithEverything() {
    long most = bytes(512, 8, 64, 4, -1);
    IntStream.rangeClosed(1, 512)
        .forEach(t -> {
          for (int slots : new int[] {0, 1, 8}) {
            for (int rank = slots == 0 ? 0 : 16; rank <= (slots == 0 ? 0 : 64); rank += 16) {
              assertThat(bytes(t, slots, rank, 2, -1)).isLessThanOrEqualTo(most);
            }
          }
        });
    for (LoraMode mode : LoraMode.values()) {
      long largest = composed(mode, 512);
      assertThat(largest > composed(LoraMode.COMPOSABLE_ONE_STREAM, 512))
          .as("%s has room for deltas", mode)
          .isEqualTo(mode == LoraMode.COMPOSABLE || mode == LoraMode.COMPOSABLE_TWO_STREAMS);
      IntStream.rangeClosed(1, 512)
          .forEach(t -> assertThat(composed(mode, t)).isLessThanOrEqualTo(largest));
    }
  }

  private static long composed(LoraMode mode, int tokens) {
    int rows = ComposedLora.mostBeside(mode, tokens * 4);
    return bytes(tokens, 0, 0, 4, rows);
  }

  private static long bytes(int tokens, int slots, int rank, int outputBytes, int deltaRows) {
    return new ForwardLayout(
            new ForwardLayout.Sizes(
                tokens,
                4,
                16,
                SIZES,
                true,
                false,
                slots,
                rank,
                true,
                outputBytes,
                2L * 96 * 4 * tokens,
                deltaRows))
        .byteSize();
  }
}
