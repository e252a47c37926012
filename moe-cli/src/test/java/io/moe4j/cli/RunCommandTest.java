package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.checkpoint.SafetensorsWriter;
import java.lang.foreign.MemorySegment;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

final class RunCommandTest {
  @TempDir Path dir;

  private Path output() {
    return dir.resolve("out.safetensors");
  }

  private static String[] args(List<String> all) {
    return all.toArray(String[]::new);
  }

  @Test
  void sampleAgreesWithTransformersAndPeft() {
    JsonNode json = Cli.run("run", "--json").succeeds().json();
    assertThat(json.path("passed").asBoolean()).isTrue();
    int layers = 0;
    for (JsonNode model : json.path("models")) {
      assertThat(model.path("selection").path("chosen").asText()).isEqualTo("cpu");
      for (JsonNode layer : model.path("layers")) {
        layers++;
        assertThat(layer.path("relative_error").asDouble(1)).isBetween(0.0, 1e-5);
        assertThat(layer.path("same_experts").asBoolean()).isTrue();
        assertThat(layer.path("tokens_per_second").asDouble()).isPositive();
      }
    }
    assertThat(layers).isEqualTo(4);
  }

  @Test
  void sampleOnTheReferenceBackendPrintsTheTable() {
    Cli.Result r = Cli.run("run", "--backend", "cpu-reference").succeeds();
    assertThat(r.out())
        .contains("All 4 layers agree")
        .contains("asked for by name")
        .contains("cpu-reference")
        .contains("adapter b: 8 of 16 tensors were left out");
  }

  @ParameterizedTest
  @CsvSource({
    "qwen3_moe,'a,b,c,d,e,u,a_2d,m_2d,n_2d,o_2d,p_2d,q_2d,a_old',0 1",
    "mixtral,'a,b,c,u,a_2d,m_2d,n_2d,o_2d,a_old',0 1",
    "olmoe,'a,b,c,a_2d,m_2d',0 1",
    "gpt_oss,'a,b,c,d,a_0190',0 1",
    "deepseek_v3,'a,b,c,a_2d,m_2d',1 2",
  })
  void everyAdapterOfAModelInOneBatch(String model, String adapters, String layers) {
    List<String> command =
        new ArrayList<>(List.of("run", "--model", Cli.fixture(model + "/model")));
    for (String a : adapters.split(",", -1)) {
      command.addAll(List.of("--adapter", a + "=" + Cli.fixture(model + "/adapters/" + a)));
    }
    String io = Cli.fixture(model + "/io.safetensors");
    for (String layer : layers.split(" ", -1)) {
      List<String> all = new ArrayList<>(command);
      all.addAll(List.of("--layer", layer, "--input", io + ":layers." + layer + ".input"));
      all.addAll(List.of("--assign", io + ":mixed.assignment", "--output", output().toString()));
      Cli.run(args(all)).succeeds();
      try (SafetensorsFile got = SafetensorsFile.open(output());
          SafetensorsFile expected = SafetensorsFile.open(Path.of(io))) {
        String n = "layers." + layer + ".";
        assertThat(got.tensors())
            .containsOnlyKeys(n + "output", n + "topk_ids", n + "topk_weights");
        assertThat(got.tensor(n + "output").dtype()).isEqualTo(DType.F32);
        assertThat(
                SampleRun.relativeError(
                    got.tensor(n + "output"), expected.tensor(n + "output.mixed")))
            .isLessThan(1e-5);
        assertThat(SampleRun.sameRows(got.tensor(n + "topk_ids"), expected.tensor(n + "topk_ids")))
            .isTrue();
        assertThat(sum(got.tensor(n + "topk_weights")))
            .isCloseTo(
                sum(expected.tensor(n + "topk_weights")),
                org.assertj.core.data.Percentage.withPercentage(1e-3));
      }
    }
  }

  private static double sum(Tensor t) {
    return java.util.Arrays.stream(t.toDoubles()).sum();
  }

  @Test
  void allLayersNamesThatRepeatAndJson() {
    String io = Cli.fixture("qwen3_moe/io.safetensors");
    JsonNode json =
        Cli.run(
                "run",
                "--model",
                Cli.fixture("qwen3_moe/model"),
                "--layer",
                "all",
                "--adapter",
                "x=" + Cli.fixture("qwen3_moe/adapters/b"),
                "--input",
                io + ":layers.0.input",
                "--assign",
                "x,base",
                "--output",
                output().toString(),
                "--json")
            .succeeds()
            .json();
    assertThat(json.path("tokens").asInt()).isEqualTo(17);
    assertThat(json.path("base_tokens").asInt()).isEqualTo(8);
    JsonNode adapter = json.path("adapters").path(0);
    assertThat(adapter.path("tokens").asInt()).isEqualTo(9);
    assertThat(adapter.path("tensors_applied").asInt()).isEqualTo(8);
    assertThat(adapter.path("tensors_skipped").asInt()).isEqualTo(8);
    assertThat(json.path("layers")).hasSize(2);
    try (SafetensorsFile got = SafetensorsFile.open(output());
        SafetensorsFile expected = SafetensorsFile.open(Path.of(io))) {
      assertThat(got.tensors()).hasSize(6);
      Tensor out = got.tensor("layers.0.output");
      // Token 0 has the adapter, token 1 has none.
      for (int token = 0; token < 2; token++) {
        String who = token == 0 ? "b" : "base";
        Tensor want = expected.tensor("layers.0.output." + who).narrow(0, token, 1);
        assertThat(SampleRun.relativeError(out.narrow(0, token, 1), want)).isLessThan(1e-5);
      }
    }
  }

  @Test
  void bf16InputGivesWhatTheSameNumbersInF32Give() {
    Path bf16 = dir.resolve("in.safetensors");
    String model = Cli.fixture("olmoe/model");
    Path io = Path.of(Cli.fixture("olmoe/io.safetensors"));
    try (SafetensorsFile file = SafetensorsFile.open(io)) {
      Tensor f32 = file.tensor("layers.0.input");
      Tensor half =
          Tensor.of(
              DType.BF16,
              MemorySegment.ofArray(new short[Math.toIntExact(f32.elementCount())]),
              f32.shape());
      for (int t = 0; t < f32.size(0); t++) {
        for (int h = 0; h < f32.size(1); h++) {
          half.set(f32.get(t, h), t, h);
        }
      }
      SafetensorsWriter.write(bf16, Map.of("x", half), Map.of());
      Cli.run("run", "--model", model, "--input", bf16 + ":x", "--output", output().toString())
          .succeeds();
      // With bf16 hidden states, kernels may round what is between the products to bf16 once.
      double bf16UnitRoundoff = Math.scalb(1.0, -8);
      try (SafetensorsFile got = SafetensorsFile.open(output())) {
        assertThat(
                SampleRun.relativeError(
                    got.tensor("layers.0.output"), file.tensor("layers.0.output.base")))
            .isLessThan(bf16UnitRoundoff);
      }
    }
  }

  @Test
  void noTokensGiveEmptyTensors() {
    Path in = dir.resolve("in.safetensors");
    Tensor none = Tensor.ofFloats(new float[0], 0, 128);
    SafetensorsWriter.write(in, Map.of("x", none), Map.of());
    Cli.run(
            "run",
            "--model",
            Cli.fixture("qwen3_moe/model"),
            "--input",
            in + ":x",
            "--output",
            output().toString())
        .succeeds();
    try (SafetensorsFile got = SafetensorsFile.open(output())) {
      assertThat(got.tensor("layers.0.output").shape()).containsExactly(0, 128);
      assertThat(got.tensor("layers.0.topk_ids").shape()).containsExactly(0, 4);
    }
  }

  @Test
  void outputNeverReplacesAnInputAndLeavesNothingBehindWhenItFails() throws Exception {
    Path in = dir.resolve("in.safetensors");
    Files.copy(Path.of(Cli.fixture("qwen3_moe/io.safetensors")), in);
    byte[] before = Files.readAllBytes(in);
    Path link = dir.resolve("link.safetensors");
    Files.createSymbolicLink(link, in);
    for (Path target : List.of(in, link)) {
      Cli.Result r =
          Cli.run(
              "run",
              "--model",
              Cli.fixture("qwen3_moe/model"),
              "--input",
              in + ":layers.0.input",
              "--output",
              target.toString());
      assertThat(r.code()).isEqualTo(ExitCode.USAGE);
      assertThat(r.error()).contains("is one of the inputs");
    }
    assertThat(Files.readAllBytes(in)).isEqualTo(before);
    Cli.Result refused =
        Cli.run(
            "run",
            "--model",
            Cli.fixture("qwen3_moe/model"),
            "--input",
            in + ":layers.0.input",
            "--backend",
            "batched-cpu-reference",
            "--output",
            output().toString());
    assertThat(refused.code()).isEqualTo(ExitCode.UNSUPPORTED);
    try (Stream<Path> left = Files.list(dir)) {
      assertThat(left.map(p -> p.getFileName().toString()))
          .containsExactlyInAnyOrder("in.safetensors", "link.safetensors");
    }
  }

  @Test
  void theCheckCanFail() {
    Tensor a = Tensor.ofFloats(new float[] {3, 4}, 1, 2);
    Tensor b = Tensor.ofFloats(new float[] {3, 4.005f}, 1, 2);
    assertThat(SampleRun.relativeError(a, a)).isZero();
    assertThat(SampleRun.relativeError(b, a)).isBetween(0.0009, 0.0011);
    Tensor ids = Tensor.ofInts(new int[] {1, 2, 3, 4}, 2, 2);
    assertThat(SampleRun.sameRows(Tensor.ofInts(new int[] {2, 1, 3, 4}, 2, 2), ids)).isTrue();
    assertThat(SampleRun.sameRows(Tensor.ofInts(new int[] {1, 3, 2, 4}, 2, 2), ids)).isFalse();
  }
}
