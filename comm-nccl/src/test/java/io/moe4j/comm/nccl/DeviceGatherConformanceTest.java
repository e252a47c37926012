package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.spi.ExpertExchangeProvider;
import io.moe4j.api.spi.Support;
import io.moe4j.tck.KitRank;
import java.time.Duration;
import java.util.List;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** What travels, and where it lands. */
class DeviceGatherConformanceTest extends HostExchangeConformanceTest {
  @Override
  protected ExpertExchangeProvider provider() {
    return new DeviceGatherProvider(_ -> new HostKernels());
  }

  /**
   * What is mistyped is a reason why another exchange is taken, not an error when one is opened.
   */
  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      textBlock =
          """
          moe4j.exchange.sums   | f16   | f32, bf16
          moe4j.exchange.adds   | yes   | on, off
          moe4j.exchange.direct | maybe | on, off
          """)
  void aMistypedSettingIsAReason(String property, String given, String accepted) {
    MoeConfig config = MoeConfig.builder(8, 8, 2, 1).build();
    List<KitRank> ranks = openGroup(2, Duration.ofSeconds(10));
    try {
      Communicator group = ranks.get(0).communicator();
      assertThat(provider().isSupported(config, group)).isEqualTo(Support.yes());
      System.setProperty(property, given);
      assertThat(provider().isSupported(config, group).reasons())
          .containsExactly(
              new Support.Reason(
                  Support.Code.OTHER,
                  "-D%s is \"%s\", accepted: %s".formatted(property, given, accepted)));
    } finally {
      System.clearProperty(property);
      ranks.forEach(r -> r.communicator().close());
    }
  }
}
