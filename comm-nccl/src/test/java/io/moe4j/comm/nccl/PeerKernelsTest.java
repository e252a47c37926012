package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;

/** What Java says of {@code peers.cu} and what stands there. */
class PeerKernelsTest {
  private static int constant(String name) throws IOException {
    String source = Files.readString(Path.of("src/main/cuda/peers.cu"));
    Matcher m = Pattern.compile("constexpr int " + name + " = (\\d+);").matcher(source);
    assertThat(m.find()).isTrue();
    return Integer.parseInt(m.group(1));
  }

  @Test
  void gridsStayWithinTheFlags() throws IOException {
    int most = constant("MOST_BLOCKS");
    for (int rows = 0; rows <= 1 << 16; rows++) {
      assertThat(PeerKernels.blocks(rows)).isBetween(1, most);
      assertThat(PeerKernels.addingBlocks(rows)).isBetween(1, most);
    }
    assertThat(PeerKernels.blocks(8)).isEqualTo(8);
    assertThat(PeerKernels.blocks(512)).isEqualTo(128);
    assertThat(PeerKernels.blocks(4096)).isEqualTo(512);
  }

  @Test
  void theHeadOfARoomHoldsFlagsAndTurns() throws IOException {
    int ranks = constant("MOST_RANKS");
    int blocks = constant("MOST_BLOCKS");
    assertThat(ranks).isEqualTo(PeerRooms.MOST_RANKS);
    assertThat(PeerRoom.HEAD_BYTES)
        .isGreaterThanOrEqualTo(Integer.BYTES * (2L * ranks * blocks + 2L * blocks + 1));
    assertThat(PeerRoom.HEAD_BYTES % 4096).isZero();
  }
}
