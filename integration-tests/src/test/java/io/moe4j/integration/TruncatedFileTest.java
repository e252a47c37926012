package io.moe4j.integration;

import static java.util.Objects.requireNonNull;
import static org.assertj.core.api.Assertions.assertThat;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.Arguments;
import org.junit.jupiter.params.provider.MethodSource;

/**
 * A file is shortened under a layer whose kernels are compiled: in a process of its own, because
 * what is tested is that it lives. {@link TruncatedFileMain} says what it saw.
 */
class TruncatedFileTest {
  @TempDir static Path dir;

  private record Result(int code, String text) {}

  private static final List<List<String>> RUNS =
      List.of(
          List.of("mixtral", "off"),
          List.of("qwen3_moe", "scalar"),
          List.of("deepseek_v3", "off"),
          List.of("mixtral", "avx2"),
          List.of("deepseek_v3", "auto"));

  /** All processes, as many at a time as there are processors. */
  private static Map<List<String>, Future<Result>> results = Map.of();

  static List<Arguments> runs() {
    return RUNS.stream().map(run -> Arguments.of(run.toArray())).toList();
  }

  @BeforeAll
  static void start() {
    ExecutorService pool = Executors.newFixedThreadPool(Runtime.getRuntime().availableProcessors());
    results =
        RUNS.stream()
            .collect(
                Collectors.toMap(
                    run -> run, run -> pool.submit(() -> process(run.getFirst(), run.getLast()))));
    pool.shutdown();
  }

  private static Result process(String model, String kernels) throws Exception {
    Path folder = Files.createDirectory(dir.resolve(model + "-" + kernels));
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(
        List.of(
            "--add-modules=jdk.incubator.vector",
            "--enable-native-access=ALL-UNNAMED",
            kernels.equals("scalar") ? "-Dmoe4j.cpu.scalar=true" : "-Dmoe4j.cpu.native=" + kernels,
            "-XX:ErrorFile=" + folder.resolve("crash.log"),
            "-XX:-CreateCoredumpOnCrash",
            "-cp",
            System.getProperty("java.class.path"),
            TruncatedFileMain.class.getName(),
            Path.of("..", "testdata", "fixtures", model, "model").toString(),
            folder.toString()));
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    String text = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor(120, TimeUnit.SECONDS)).isTrue();
    return new Result(process.exitValue(), text);
  }

  /** A machine without the instruction set computes with the Vector API, which is as good here. */
  @ParameterizedTest
  @MethodSource("runs")
  void theProcessLives(String model, String kernels) throws Exception {
    Result result = requireNonNull(results.get(List.of(model, kernels))).get();
    String text = result.text();
    boolean copies = !kernels.equals("off") && !kernels.equals("scalar");
    assertThat(result.code()).as(text).isZero();
    // Kernels in C have copies of the weights, and may not even notice.
    assertThat(text.lines())
        .doesNotContain("without a guard: WRONG")
        .anyMatch(l ->
            l.equals("without a guard: CheckpointException")
                || (copies && l.equals("without a guard: right")));
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
