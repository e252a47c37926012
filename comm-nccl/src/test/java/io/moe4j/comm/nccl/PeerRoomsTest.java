package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.comm.CommException;
import java.util.Objects;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Which groups try to write into each other's memory. */
class PeerRoomsTest {
  @AfterEach
  void clear() {
    System.clearProperty(PeerRooms.PROPERTY);
  }

  @Test
  void twoToEightRanksUnlessItIsOff() {
    assertThat(PeerRooms.isWanted(1)).isFalse();
    assertThat(PeerRooms.isWanted(2)).isTrue();
    assertThat(PeerRooms.isWanted(8)).isTrue();
    assertThat(PeerRooms.isWanted(9)).isFalse();
    System.setProperty(PeerRooms.PROPERTY, " on ");
    assertThat(PeerRooms.isWanted(2)).isTrue();
    System.setProperty(PeerRooms.PROPERTY, "OFF");
    assertThat(PeerRooms.isWanted(2)).isFalse();
  }

  @Test
  void ranksThatComeWithDifferentSizesAreTold() {
    byte[] small = PeerRooms.card(0, 4096);
    assertThat(PeerRooms.disagreement(new byte[][] {small, PeerRooms.card(0, 4096)})).isNull();
    byte[] memory = PeerRooms.card(0, 4096);
    memory[0] = 1; // what is shared differs on every rank
    assertThat(PeerRooms.disagreement(new byte[][] {small, memory})).isNull();
    CommException sums =
        PeerRooms.disagreement(new byte[][] {small, small, PeerRooms.card(0, 8192)});
    assertThat(sums)
        .hasMessageContaining(
            "rank 2 has 0 bytes of rows and 8192 of sums, rank 0 has 0 bytes of rows and 4096 of"
                + " sums; layers, numbers of tokens");
    assertThat(Objects.requireNonNull(sums).rank()).isEqualTo(2);
    assertThat(PeerRooms.disagreement(new byte[][] {PeerRooms.card(1 << 20, 4096), small}))
        .hasMessageContaining("rank 1 has 0 bytes of rows")
        .hasMessageContaining("rank 0 has 1048576 bytes of rows");
  }

  /** A group opens nevertheless: the exchange that would use the rooms says what is wrong. */
  @ParameterizedTest
  @ValueSource(strings = {"0", "false", "none"})
  void anythingElseIsAFault(String value) {
    assertThat(PeerRooms.fault()).isNull();
    System.setProperty(PeerRooms.PROPERTY, value);
    assertThat(PeerRooms.isWanted(2)).isFalse();
    assertThat(PeerRooms.fault())
        .isEqualTo("-Dmoe4j.exchange.direct is \"%s\", accepted: on, off", value);
  }
}
