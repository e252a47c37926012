package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/**
 * A file is shortened under a layer whose kernels are compiled: in a process of its own, because
 * what is tested is that it lives. {@link TruncatedFileMain} says what it saw.
 */
class TruncatedFileTest {
  @TempDir Path dir;

  @ParameterizedTest
  @ValueSource(strings = {"mixtral", "qwen3_moe", "deepseek_v3"})
  void theProcessLives(String model) throws Exception {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(
        List.of(
            "--add-modules=jdk.incubator.vector",
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
    assertThat(text.lines())
        .contains(
            "without a guard: CheckpointException",
            "under way: CheckpointException",
            "afterwards: CheckpointException",
            "cut in the middle of a page: CheckpointException",
            "copied weights: right",
            "replaced by a rename: right",
            "built over it: CheckpointException",
            "another layer: right");
  }
}
