package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.spi.Tuner;
import io.moe4j.cli.bench.DeviceBench;
import io.moe4j.cli.bench.DeviceTuning;
import io.moe4j.oracle.BackendCatalog;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** moe tune as far as it goes without a GPU: its command line, its refusal, its report. */
final class TuneCommandTest {
  @AfterEach
  void forget() {
    System.clearProperty("moe4j.triton.tiles");
    System.clearProperty("moe4j.marlin.plans");
    System.clearProperty("moe4j.flashinfer.tactics");
  }

  private static void withoutGpu() {
    try (BackendCatalog catalog = BackendCatalog.discover()) {
      assumeTrue(
          catalog.detectPlatform().device(DeviceType.CUDA).isEmpty(), "this machine has a GPU");
    }
  }

  @Test
  void withoutAGpuItIsOneParagraph(@TempDir Path dir) {
    withoutGpu();
    Path file = dir.resolve("not").resolve("made.json");
    Cli.Result r = Cli.run("tune", "--shape", "tiny", "--output", file.toString());
    assertThat(r.code()).isEqualTo(ExitCode.DEVICE);
    assertThat(r.out()).isEmpty();
    assertThat(r.error())
        .startsWith(
            "moe: moe tune measures on a GPU, and this machine has none for flashinfer-cutlass, marlin, triton: ")
        .endsWith("without a file of tuned choices the built-in table serves.");
    assertThat(file.getParent()).doesNotExist();
    assertThat(Cli.run("tune", "--model", Cli.fixture("olmoe/model")).code())
        .isEqualTo(ExitCode.DEVICE);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "--tokens 0 | --tokens is 0, must be 1..131072",
        "--adapters -1 | --adapters is -1, must be 0..1024",
        "--rank 2000 | --rank is 2000, must be 1..1016",
        "--limit 0 | --limit is 0, must be at least 1 second",
        "--shape fancy | --shape is \"fancy\"; known are olmoe",
        "--dtype f32 | --dtype is \"f32\"; accepted are bf16, f16, int4, int4-g32, int4-zero, int8, fp8, fp8-tensor, mxfp4, nvfp4",
        "--layer 3 | --layer goes with --model DIR",
        "--model . --shape tiny | --model brings its own sizes and dtype",
        "--backend cpu | --backend is \"cpu\", which has nothing to tune; what can be tuned: flashinfer-cutlass, marlin, triton",
        "--tiles= | --tiles is empty, must be a file or off",
      })
  void wrongCommandLines(String arguments, String message) {
    Cli.Result r = Cli.run(("tune " + arguments).split(" "));
    assertThat(r.code()).as(r.err()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains(message);
  }

  @Test
  void aLayerThatIsNotThere() {
    Cli.Result r = Cli.run("tune", "--model", Cli.fixture("olmoe/model"), "--layer", "7");
    assertThat(r.code()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains("--layer is 7; the MoE layers of");
  }

  private static DeviceTuning.Row row(int tokens, int adapters, Tuner.Outcome outcome) {
    return new DeviceTuning.Row(
        "olmoe",
        tokens,
        adapters == 0 ? DeviceBench.Lora.NONE : new DeviceBench.Lora(16, adapters),
        outcome);
  }

  private static final TuneReport REPORT =
      new TuneReport(
          "NVIDIA H200",
          "triton",
          Path.of("tiles.json"),
          3,
          false,
          List.of(
              row(1, 0, new Tuner.Outcome("a + b", 10, "a + b", 10, 30, List.of())),
              row(64, 8, new Tuner.Outcome("c + d", 100, "a + b", 121, 40, List.of("e + f: NaN")))),
          List.of("huge is left out"));

  @Test
  void theReportForPeople() {
    assertThat(REPORT.text())
        .contains(
            "Tuned on NVIDIA H200 for triton:",
            "as built in",
            "8 of rank 16  100.0        121.0   21.0%  c + d",
            "dropped at olmoe T=64: e + f: NaN",
            "huge is left out",
            "2 of 3 sizes measured before it was stopped, another choice than the built-in one at 1,"
                + " gain in the geometric mean 10.0%.",
            "Kept in tiles.json");
  }

  @Test
  void theReportForPrograms() {
    ObjectNode json = REPORT.json();
    assertThat(json.path("complete").asBoolean()).isFalse();
    assertThat(json.path("gain").asDouble()).isBetween(1.0999, 1.1001);
    assertThat(json.path("rows")).hasSize(2);
    assertThat(json.path("rows").path(1).path("built_in_us").asDouble()).isEqualTo(121);
    assertThat(json.path("rows").path(1).path("dropped").path(0).asText()).isEqualTo("e + f: NaN");
    assertThat(json.path("skipped")).hasSize(1);
  }

  @Test
  void doctorShowsTheFile(@TempDir Path dir) {
    Cli.Result none = Cli.run("doctor", "--tiles", dir.resolve("none.json").toString()).succeeds();
    assertThat(none.out()).contains("tuning of triton", "none.json: none yet");
    Cli.Result off = Cli.run("doctor", "--tiles", "off").succeeds();
    assertThat(off.out())
        .contains("turned off by moe4j.triton.tiles", "turned off by moe4j.marlin.plans");
    Cli.Result plans =
        Cli.run("doctor", "--backend", "marlin", "--tiles", dir.resolve("p.json").toString());
    assertThat(plans.out()).contains("tuning of marlin", "p.json: none yet");
    Cli.Result damaged = Cli.run("doctor", "--tiles", dir.toString()).succeeds();
    assertThat(damaged.out()).contains("it is not a regular file", "moe tune writes the file anew");
  }
}
