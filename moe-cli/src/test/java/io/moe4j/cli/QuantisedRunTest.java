package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import com.fasterxml.jackson.databind.JsonNode;
import io.moe4j.checkpoint.SafetensorsFile;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.MethodSource;

/** A quantised checkpoint from the command line: inspected, and run with its adapters. */
class QuantisedRunTest {
  private static final Path ROOT = Cli.FIXTURES.resolveSibling("quantised");

  @TempDir private Path dir;

  static Stream<String> names() {
    try (Stream<Path> all = Files.list(ROOT)) {
      return all
          .filter(Files::isDirectory)
          .map(p -> String.valueOf(p.getFileName()))
          .sorted()
          .toList()
          .stream();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  @ParameterizedTest
  @MethodSource("names")
  void everyFormatRunsWithAMixOfAdapters(String name) {
    run(name, "", "cpu", "--backend", "cpu");
  }

  @ParameterizedTest
  @CsvSource({"ct_w8a8_int8", "ct_fp8_channel_dynamic", "nvfp4_ct"})
  void activationsAsTheCheckpointMeansThem(String name) {
    run(
        name,
        ".actquant",
        "cpu-reference",
        "--activations",
        "as-quantised",
        "--backend",
        "cpu-reference");
  }

  private void run(String name, String kind, String backend, String... options) {
    Path fixture = ROOT.resolve(name);
    Path recorded = fixture.resolve("io.safetensors");
    Path output = dir.resolve(name + ".safetensors");
    try (SafetensorsFile io = SafetensorsFile.open(recorded)) {
      String layer =
          io.tensors().keySet().stream()
              .filter(n -> n.endsWith(".input"))
              .map(n -> n.split("\\.", -1)[1])
              .findFirst()
              .orElseThrow();
      List<String> args = new ArrayList<>(List.of("run", "--json", "--layer", layer));
      args.addAll(List.of("--model", fixture.resolve("model").toString()));
      args.addAll(List.of("--input", recorded + ":layers." + layer + ".input"));
      args.addAll(List.of("--assign", recorded + ":mixed.assignment"));
      args.addAll(List.of("--output", output.toString()));
      String order = io.metadata().getOrDefault("mixed_order", "");
      for (String adapter : order.split(",", -1)) {
        if (!adapter.equals("base")) {
          args.add("--adapter");
          args.add(adapter + "=" + fixture.resolve("adapters").resolve(adapter));
        }
      }
      args.addAll(List.of(options));
      JsonNode json = Cli.run(args.toArray(String[]::new)).succeeds().json();
      assertThat(json.path("layers").path(0).path("backend").asText()).isEqualTo(backend);
      double[] golden = io.tensor("layers." + layer + ".output.mixed" + kind).toDoubles();
      try (SafetensorsFile written = SafetensorsFile.open(output)) {
        double[] actual = written.tensor("layers." + layer + ".output").toDoubles();
        assertThat(distance(actual, golden)).as(name).isCloseTo(0, within(1e-5));
      }
    }
  }

  @Test
  void aPlainModelHasNoQuantisedActivations() {
    Path fixture = ROOT.resolve("gptq4_sym_g128");
    Cli.Result r =
        Cli.run(
            "run",
            "--model",
            fixture.resolve("model").toString(),
            "--layer",
            "all",
            "--input",
            fixture.resolve("io.safetensors") + ":layers.0.input",
            "--activations",
            "as-quantised",
            "--output",
            dir.resolve("plain.safetensors").toString());
    assertThat(r.succeeds().out()).contains("chosen: cpu (");
    assertThat(r.error())
        .contains("as-quantised changes nothing: no layer was made for quantised activations");
  }

  private static double distance(double[] actual, double[] golden) {
    assertThat(actual).hasSameSizeAs(golden);
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < golden.length; i++) {
      difference += (actual[i] - golden[i]) * (actual[i] - golden[i]);
      norm += golden[i] * golden[i];
    }
    return Math.sqrt(difference / norm);
  }

  @Test
  void inspectSaysWhatIsQuantisedAndHow() {
    String model = ROOT.resolve("gptq_v2_asym_g32/model").toString();
    assertThat(Cli.run("inspect", model).succeeds().out())
        .contains(
            "int4 group 32 asymmetric and BF16",
            "experts: int4 group 32 asymmetric, 11 maps like experts.0.gate_proj, ",
            "experts: BF16, 1 map like experts.2.down_proj.weight, 16.0 KiB",
            "router: BF16, 1 map like gate.weight");
    JsonNode layer =
        Cli.run("inspect", "--json", model).succeeds().json().path("moe_layers").path(0);
    assertThat(layer.path("quantized").asBoolean()).isTrue();
    JsonNode experts = layer.path("weights").path(0);
    assertThat(experts.path("part").asText()).isEqualTo("experts");
    assertThat(experts.path("bits").asInt()).isEqualTo(4);
    assertThat(experts.path("group_size").asInt()).isEqualTo(32);
    assertThat(experts.path("symmetric").asBoolean()).isFalse();
    assertThat(experts.path("maps").asInt()).isEqualTo(11);
    // 11 maps [64, 128] or [128, 64]: codes, F16 scales and 4-bit zero points of 32 inputs.
    assertThat(experts.path("bytes").asLong()).isEqualTo(11 * (8192 / 2 + 8192 / 32 * 2 + 128));
    assertThat(layer.path("weights").path(1).path("quantized").asBoolean()).isFalse();
    JsonNode plain = Cli.run("inspect", "--json", Cli.fixture("olmoe/model")).succeeds().json();
    assertThat(plain.path("moe_layers").path(0).path("quantized").asBoolean(true)).isFalse();
  }

  @Test
  void anotherWordForActivationsIsAnError() {
    Cli.Result r = Cli.run("run", "--model", "x", "--activations", "int8");
    assertThat(r.code()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains("'int8', must be unquantised or as-quantised");
    assertThat(Cli.run("run", "--activations", "as-quantised").error())
        .contains("--activations and --output go with --model DIR");
  }
}
