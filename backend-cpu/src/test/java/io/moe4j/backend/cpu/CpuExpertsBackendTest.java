package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CpuExpertsBackendTest {
  /** A mistake of the user, who reads it where backends are chosen. */
  @ParameterizedTest
  @CsvSource({"moe4j.cpu.native, sse9", "moe4j.cpu.pack, perhaps"})
  void aPropertyThatIsWrongIsARefusal(String property, String value) {
    System.setProperty(property, value);
    try {
      Support support =
          new CpuExpertsBackend()
              .isSupportedConfig(MoeConfig.builder(8, 8, 2, 1).build(), Platform.cpuOnly());
      assertThat(support.isSupported()).isFalse();
      assertThat(support.reasons()).hasSize(1);
      assertThat(support.reasons().getFirst().message())
          .startsWith("-D" + property + " is \"" + value + "\", accepted: auto, ");
    } finally {
      System.clearProperty(property);
    }
  }

  /** Whether a layer is supported depends on the layer and the machine alone. */
  @Test
  void aPropertyIsReadWhenTheBackendIsFound() {
    CpuExpertsBackend before = new CpuExpertsBackend();
    System.setProperty("moe4j.cpu.native", "sse9");
    try {
      MoeConfig config = MoeConfig.builder(8, 8, 2, 1).build();
      assertThat(before.isSupportedConfig(config, Platform.cpuOnly()).isSupported()).isTrue();
    } finally {
      System.clearProperty("moe4j.cpu.native");
    }
  }

  /** In processes of their own. The line goes on to say what computes instead. */
  @Test
  void whatKeepsKernelsFromRunningIsALine() throws Exception {
    assertThat(describe("-Dos.arch=riscv64"))
        .contains("no kernels in C: there are no compiled kernels for ")
        .contains("riscv64)");
    assertThat(describe("--illegal-native-access=deny"))
        .contains("no kernels in C: native access is denied to this code");
    assertThat(describe("-Dmoe4j.cpu.native=off", "-Dmoe4j.cpu.pin=true"))
        .contains("no kernels in C: -Dmoe4j.cpu.native=off");
    assertThat(describe("--illegal-native-access=deny", "-Dmoe4j.cpu.pin=true"))
        .contains("no kernels in C: native access is denied to this code");
  }

  private static String describe(String... flags) throws Exception {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of(flags));
    command.addAll(List.of("-cp", System.getProperty("java.class.path"), Main.class.getName()));
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor(60, TimeUnit.SECONDS)).isTrue();
    assertThat(process.exitValue()).as(text).isZero();
    return text.lines().filter(l -> l.startsWith("host processor")).findFirst().orElse(text);
  }

  /** Says what the backend says of itself. */
  static final class Main {
    private Main() {}

    public static void main(String[] args) {
      System.out.println(new CpuExpertsBackend().description());
    }
  }
}
