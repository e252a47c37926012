package io.moe4j.tck;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.config.Activation;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import org.junit.jupiter.api.Test;

class KitTest {
  /** Refuses everything in the same words, which fit layers of SILU. */
  private static final class OneSentence extends Altered {
    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      return Support.no(Support.Code.ACTIVATION, "SILU is not computed");
    }
  }

  @Test
  void wordsThatFitOneConfigAreReadAgainForTheNext() {
    MoeConfig silu = MoeConfig.builder(4, 4, 2, 1).activation(Activation.SILU).build();
    MoeConfig relu = silu.toBuilder().activation(Activation.RELU2_NO_MUL).build();
    var device = Devices.open(DeviceType.CPU);
    try (Kit kit = new Kit(new OneSentence(), device, new KitPunicaWrapper(device))) {
      assertThat(kit.supports(silu)).isFalse();
      assertThatThrownBy(() -> kit.supports(relu))
          .isInstanceOf(AssertionError.class)
          .hasMessageStartingWith("MOE-1.2")
          .hasMessageContaining("\"SILU is not computed\"");
      assertThat(kit.supports(relu)).as("a bad reason fails once").isFalse();
      assertThat(kit.supports(silu)).isFalse();
    }
  }
}
