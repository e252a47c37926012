package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * A file is shortened under a layer whose kernels are compiled: in a process of its own, because
 * what is tested is that it lives. {@link TruncatedFileMain} says what it saw.
 */
class TruncatedFileTest {
  @TempDir Path dir;

  @ParameterizedTest
  @CsvSource({
    "mixtral, off",
    "qwen3_moe, off",
    "deepseek_v3, off",
    "mixtral, auto",
    "deepseek_v3, auto",
  })
  void theProcessLives(String model, String kernelsInC) throws Exception {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(
        List.of(
            "--add-modules=jdk.incubator.vector",
            "--enable-native-access=ALL-UNNAMED",
            "-Dmoe4j.cpu.native=" + kernelsInC,
            "-XX:ErrorFile=" + dir.resolve("crash.log"),
            "-XX:-CreateCoredumpOnCrash",
            "-cp",
            System.getProperty("java.class.path"),
            TruncatedFileMain.class.getName(),
            Path.of("..", "testdata", "fixtures", model, "model").toString(),
            dir.toString()));
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor(120, TimeUnit.SECONDS)).isTrue();
    assertThat(process.exitValue()).as(text).isZero();
    // Kernels in C have copies of the weights, and may not even notice.
    assertThat(text.lines())
        .doesNotContain("without a guard: WRONG")
        .anyMatch(l ->
            l.equals("without a guard: CheckpointException")
                || (kernelsInC.equals("auto") && l.equals("without a guard: right")));
    assertThat(text.lines())
        .contains(
            "under way: CheckpointException",
            "afterwards: CheckpointException",
            "cut in the middle of a page: CheckpointException",
            "copied weights: right",
            "replaced by a rename: right",
            "built over it: CheckpointException",
            "copied over it: CheckpointException",
            "mapped by the caller: right",
            "without what was mapped: right",
            "another layer: right");
  }
}
