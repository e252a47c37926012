package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

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
