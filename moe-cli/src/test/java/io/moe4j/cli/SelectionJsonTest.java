package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Experts;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.spi.Support;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeOracle;
import java.util.List;
import org.junit.jupiter.api.Test;

class SelectionJsonTest {
  /** A stranger with much to say. */
  private record Talker(int letters, boolean fails) implements ExpertsBackend {
    @Override
    public String name() {
      return "talker";
    }

    @Override
    public String description() {
      return "d".repeat(letters);
    }

    @Override
    public DeviceType deviceType() {
      return DeviceType.CPU;
    }

    @Override
    public ActivationFormat activationFormat() {
      return ActivationFormat.STANDARD;
    }

    @Override
    public boolean supportsLora() {
      return false;
    }

    @Override
    public int priority(MoeConfig config, Platform platform) {
      return 1;
    }

    @Override
    public Support isSupportedConfig(MoeConfig config, Platform platform) {
      String why = "w".repeat(letters);
      if (fails) {
        throw new IllegalStateException(why);
      }
      return Support.no(Support.Code.SIZE, why);
    }

    @Override
    public Experts prepare(MoeConfig config, ExpertWeights weights, Device device) {
      throw new IllegalStateException("nothing is supported");
    }
  }

  private static ObjectNode of(Talker talker) {
    try (MoeOracle oracle =
        MoeOracle.of(BackendCatalog.of(List.of(talker), List.of(), List.of()))) {
      return SelectionJson.of(
          oracle.evaluate(BackendsCommand.defaultConfig(), Platform.cpuOnly(), null));
    }
  }

  private static String reason(ObjectNode json) {
    return json.path("candidates").path(0).path("reasons").path(0).path("message").asText();
  }

  /** Tables cut at 500 characters; a program gets all of it, whoever said it. */
  @Test
  void textsThatTablesCutAreWhole() {
    ObjectNode json = of(new Talker(5000, false));
    assertThat(json.path("candidates").path(0).path("description").asText()).hasSize(5000);
    assertThat(reason(json)).isEqualTo("w".repeat(5000));
    assertThat(reason(of(new Talker(5000, true)))).contains("w".repeat(5000));
  }

  @Test
  void noPluginFillsADisk() {
    for (boolean fails : new boolean[] {false, true}) {
      ObjectNode json = of(new Talker(2_000_000, fails));
      assertThat(json.toString().length()).isLessThan(50_000);
      assertThat(reason(json)).endsWith("...");
    }
  }
}
