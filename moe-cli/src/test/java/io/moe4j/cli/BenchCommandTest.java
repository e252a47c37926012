package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Path;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

final class BenchCommandTest {
  @Test
  void aTinyBenchWritesItsReport(@TempDir Path dir) {
    Path out = dir.resolve("deep").resolve("er");
    Cli.Result r =
        Cli.run(
            "bench",
            "--shape",
            "8x2x64x32",
            "--tokens",
            "3,1",
            "--adapters",
            "2",
            "--rank",
            "4",
            "--quick",
            "--out",
            out.toString(),
            "--json");
    JsonNode json = r.succeeds().json();
    assertThat(json.path("rows")).hasSize(4);
    for (JsonNode row : json.path("rows")) {
      assertThat(row.path("median_ns").asLong()).isPositive();
      assertThat(row.path("fraction_of_floor").asDouble()).isPositive();
      assertThat(row.path("backend").asText()).isEqualTo("cpu");
    }
    assertThat(json.path("rows").path(0).path("tokens").asInt()).isEqualTo(1);
    // One token: 2 of 8 experts, each 3 * 64 * 32 bf16; the router; input in bf16, output in f32.
    assertThat(json.path("rows").path(0).path("bytes").asLong())
        .isEqualTo(2 * 3 * 64 * 32 * 2 + 8 * 64 * 2 + 64 * 2 + 64 * 4);
    assertThat(json.path("rows").path(1).path("lora_tax").asDouble()).isPositive();
    assertThat(json.at("/layers/0/facts/0/name").asText()).isEqualTo("kernels");
    assertThat(json.at("/layers/0/facts/0/text").asText()).containsAnyOf("kernels", "Vector API");
    assertThat(out.resolve("bench.md")).content().startsWith("# moe bench");
    assertThat(out.resolve("bench.json")).content().isEqualTo(r.out());
    assertThat(out.resolve("bench.svg")).content().startsWith("<svg");
    assertThat(out.resolve("bench.html")).content().contains("</html>");
  }

  @Test
  void explainSaysWhatEachLayerRuns() {
    String[] tiny = {
      "bench", "--shape", "4x2x32x32", "--tokens", "1", "--adapters", "0", "--quick"
    };
    assertThat(Cli.run(with(tiny, "--explain")).succeeds().out())
        .contains("## 4x2x32x32 bf16\n\nlayer:   E=4 top_k=2")
        .contains("chosen: cpu")
        .containsPattern("\nkernels: .+\nweights: .+\nthreads: \\d+");
    assertThat(Cli.run(with(tiny, "--explain", "--json")).err())
        .contains("--explain does not go with --json");
    assertThat(Cli.run(with(tiny, "--explain", "--device", "cuda")).err())
        .contains("--explain does not go with --device cuda");
  }

  @Test
  void ranksThatCannotShareALayerAreRefused() {
    String[] bench = {"bench", "--device", "cuda", "--shape", "tiny", "--tokens", "6"};
    assertThat(Cli.run(with(bench, "--ranks", "4", "--tp", "3")).err())
        .contains("--tp is 3, must divide the number of ranks, 4");
    assertThat(Cli.run(with(bench, "--ranks", "3", "--tp", "3")).err())
        .contains("--ranks is 3, as tp 3; tiny has an intermediate size of 512, must divide by 3");
    assertThat(Cli.run(with(bench, "--ranks", "3")).err())
        .contains("--ranks is 3, as ep 3; tiny has 8 experts, must divide by 3");
    assertThat(Cli.run(with(bench, "--ranks", "4", "--tp", "2")).err())
        .contains("--tokens is 6, must be a multiple of --ranks 4");
    assertThat(Cli.run(with(bench, "--tp", "2")).err()).contains("--tp is 2; it goes with --ranks");
    assertThat(Cli.run("bench", "--replicated").err())
        .contains("--replicated is given; it goes with --ranks");
  }

  @Test
  void profilesOneGpuAndOneBackend() {
    assertThat(Cli.run("bench", "--profile").err()).contains("--profile goes with --device cuda");
    String[] cuda = {"bench", "--device", "cuda", "--profile"};
    assertThat(Cli.run(with(cuda, "--ranks", "2")).err())
        .contains("--profile does not go with --ranks");
    assertThat(Cli.run(with(cuda, "--beside", "triton:bf16")).err())
        .contains("--profile does not go with --beside");
  }

  private static String[] with(String[] some, String... more) {
    return Stream.concat(Stream.of(some), Stream.of(more)).toArray(String[]::new);
  }
}
