package io.moe4j.backend.cpu;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.spi.Support;
import io.moe4j.backend.cpu.options.CpuOptions;
import java.lang.foreign.Arena;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

class CpuExpertsBackendTest {
  /** A mistake of the user, who reads it where backends are chosen. */
  @ParameterizedTest
  @CsvSource({
    "moe4j.cpu.native, sse9, 'accepted: auto, off, avx2, avx512, avx512bf16, amx, neon, neonbf16'",
    "moe4j.cpu.native, java, 'accepted: auto, off, avx2, avx512, avx512bf16, amx, neon, neonbf16'",
    "moe4j.cpu.pack, perhaps, 'accepted: auto, always, never'",
    "moe4j.cpu.activations, int4, 'accepted: unquantised, int8'",
    "moe4j.cpu.scalar, maybe, 'accepted: true, false'",
    "moe4j.cpu.pin, 1, 'accepted: true, false'",
    "moe4j.cpu.threads, 0, accepted: 1..1024",
    "moe4j.cpu.threads, 1025, accepted: 1..1024",
    "moe4j.cpu.threads, 2.5, accepted: 1..1024"
  })
  void aPropertyThatIsWrongIsARefusal(String property, String value, String accepted) {
    System.setProperty(property, value);
    try {
      String wrong = "-D" + property + " is \"" + value + "\", " + accepted;
      CpuExpertsBackend backend = new CpuExpertsBackend();
      MoeConfig config = MoeConfig.builder(8, 8, 2, 1).build();
      for (Support support :
          List.of(
              backend.isSupportedConfig(config, Platform.cpuOnly()),
              new CpuBlockOpsProvider().isSupportedConfig(config))) {
        assertThat(support.isSupported()).isFalse();
        assertThat(support.reasons()).hasSize(1);
        assertThat(support.reasons().getFirst().message()).isEqualTo(wrong);
      }
      assertThat(backend.description()).contains(wrong);
      MoeConfig own = config.toBuilder().options(CpuOptions.DEFAULT).build();
      assertThat(backend.isSupportedConfig(own, Platform.cpuOnly()).isSupported()).isTrue();
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

  /** Whoever only asks pays for no threads. */
  @Test
  void askingStartsNothing() throws Exception {
    assertThat(Main.run("threads", "-Dmoe4j.cpu.threads=7", "-Dmoe4j.cpu.pin=true"))
        .contains("before 0, after 6");
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
        .contains("no kernels in C: switched off, by -Dmoe4j.cpu.native=off");
    assertThat(describe("--illegal-native-access=deny", "-Dmoe4j.cpu.pin=true"))
        .contains("no kernels in C: native access is denied to this code");
  }

  private static String describe(String... flags) throws Exception {
    String text = Main.run("describe", flags);
    return text.lines().filter(l -> l.startsWith("host processor")).findFirst().orElse(text);
  }

  /** Looks at the backend in a process of its own. */
  static final class Main {
    private Main() {}

    static String run(String what, String... flags) throws Exception {
      List<String> command = new ArrayList<>();
      command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
      command.addAll(List.of(flags));
      command.addAll(
          List.of("-cp", System.getProperty("java.class.path"), Main.class.getName(), what));
      Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
      String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertThat(process.waitFor(60, TimeUnit.SECONDS)).isTrue();
      assertThat(process.exitValue()).as(text).isZero();
      return text;
    }

    public static void main(String[] args) {
      CpuExpertsBackend backend = new CpuExpertsBackend();
      if (args[0].equals("describe")) {
        System.out.println(backend.description());
        return;
      }
      MoeConfig config = MoeConfig.builder(8, 8, 2, 1).build();
      backend.isSupportedConfig(config, Platform.cpuOnly());
      new CpuBlockOpsProvider().isSupportedConfig(config);
      new CpuDeviceProvider().probe();
      long before = threads();
      try (Arena arena = Arena.ofShared()) {
        backend
            .prepare(
                config,
                Samples.experts(new Random(1), arena, config),
                new CpuDeviceProvider().open(0))
            .close();
      }
      System.out.println("before " + before + ", after " + threads());
    }

    private static long threads() {
      return Thread.getAllStackTraces().keySet().stream()
          .filter(t -> t.getName().startsWith("moe4j-cpu-"))
          .count();
    }
  }
}
