package io.moe4j.backend.triton.launch;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.cuda.ops.ComposedLora;
import io.moe4j.cuda.ops.LoraMode;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

class ForwardLayoutTest {
  /** A workspace for the most tokens, slots and ranks serves every smaller call. */
  @Test
  void layoutGrowsWithEverything() {
    long most = new ForwardLayout(512, 4, 16, 96, 40, true, 8, 64, true, 4, false, -1).byteSize();
    IntStream.rangeClosed(1, 512)
        .forEach(t -> {
          for (int slots : new int[] {0, 1, 8}) {
            for (int rank = slots == 0 ? 0 : 16; rank <= (slots == 0 ? 0 : 64); rank += 16) {
              assertThat(
                      new ForwardLayout(t, 4, 16, 96, 40, true, slots, rank, true, 2, false, -1)
                          .byteSize())
                  .isLessThanOrEqualTo(most);
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
    return new ForwardLayout(tokens, 4, 16, 96, 40, true, 0, 0, true, 4, false, rows).byteSize();
  }
}
