package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** Which of a host's devices a process takes. */
class RankDeviceTest {
  private static Platform withCards(int cards) {
    Stream<DeviceId> ids =
        Stream.concat(
            Stream.of(new DeviceId(DeviceType.CPU, 0)),
            IntStream.range(0, cards).mapToObj(i -> new DeviceId(DeviceType.CUDA, i)));
    return new Platform(
        ids.map(id -> new DeviceInfo(id, "device " + id, Optional.empty(), 1 << 30, Map.of()))
            .toList(),
        Map.of());
  }

  private static DeviceId own(int cards, int rank, int localRank) {
    RankInfo me = new RankInfo(16, rank, localRank, "host", 29500, "test");
    return RankDevice.own(withCards(cards), DeviceType.CUDA, me);
  }

  @Test
  void whereAllAreShownEachProcessTakesThatOfItsPlaceOnTheHost() {
    assertThat(own(8, 3, 3)).isEqualTo(new DeviceId(DeviceType.CUDA, 3));
    assertThat(own(8, 11, 3)).isEqualTo(new DeviceId(DeviceType.CUDA, 3));
  }

  @Test
  void whereOneIsShownItIsTheProcesssOwn() {
    assertThat(own(1, 11, 3)).isEqualTo(new DeviceId(DeviceType.CUDA, 0));
  }

  @Test
  void moreProcessesThanDevicesAreRefused() {
    assertThatThrownBy(() -> own(2, 10, 2))
        .isInstanceOf(CliException.class)
        .hasMessageContaining("rank 10 is process 2 of its host, which has 2 cuda devices")
        .hasMessageContaining("--backend cpu");
  }
}
