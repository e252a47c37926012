package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** backends, inspect, doctor, completion, help. */
final class InfoCommandsTest {
  @Test
  void backendsAreListedWithTheirJarAndTheReasonsAgainstThem() {
    Cli.Result r =
        Cli.run("backends", "--lora", "--model", Cli.fixture("mixtral/model")).succeeds();
    assertThat(r.out()).contains("chosen: cpu", "cpu-reference", "takes BATCHED", "backend-cpu");
    JsonNode json = Cli.run("backends", "--json").succeeds().json();
    assertThat(json.path("chosen").asText()).isEqualTo("cpu");
    List<String> names = new ArrayList<>();
    for (JsonNode c : json.path("candidates")) {
      names.add(c.path("name").asText());
      assertThat(c.path("jar").asText()).isNotEmpty();
      assertThat(c.path("supported").asBoolean()).isEqualTo(c.path("reasons").isEmpty());
    }
    assertThat(names).contains("cpu", "cpu-reference");
    assertThat(json.path("platform").path("devices").path(0).path("id").asText())
        .isEqualTo("cpu:0");
  }

  @Test
  void noFittingBackendIsAnExitCode(@TempDir Path plugins) {
    Cli.Result r = Cli.run("backends", "--backend", "cutlass", "--plugins", plugins.toString());
    assertThat(r.code()).isEqualTo(ExitCode.UNSUPPORTED);
    assertThat(r.out()).contains("\"cutlass\" was asked for and is not known");
  }

  @Test
  void aBrokenPluginIsARowAndAFaultForDoctor(@TempDir Path plugins) throws Exception {
    Files.writeString(plugins.resolve("broken.jar"), "this is no jar");
    Cli.Result backends = Cli.run("backends", "--plugins", plugins.toString()).succeeds();
    assertThat(backends.out()).contains("broken").contains("chosen: cpu");
    Cli.Result doctor = Cli.run("doctor", "--plugins", plugins.toString());
    assertThat(doctor.code()).isEqualTo(ExitCode.CHECK_FAILED);
    assertThat(doctor.out()).contains("broken").contains("fault");
  }

  @Test
  void doctorFindsEverythingInOrder() {
    assertThat(Cli.run("doctor").succeeds().out()).contains("Vector API", "device cpu:0", "works");
    JsonNode json = Cli.run("doctor", "--json").succeeds().json();
    assertThat(json.path("works").asBoolean()).isTrue();
    List<String> looked = new ArrayList<>();
    json.path("findings").forEach(f -> looked.add(f.path("what").asText()));
    assertThat(looked).contains("Java", "Vector API", "native access", "processor", "backend cpu");
  }

  @ParameterizedTest
  @ValueSource(strings = {"qwen3_moe", "mixtral", "olmoe", "gpt_oss", "deepseek_v3"})
  void inspectTellsWhatACheckpointHolds(String model) {
    assertThat(Cli.run("inspect", Cli.fixture(model + "/model")).succeeds().out())
        .contains("model_type " + model, "experts: E=", "routing: top ", "activation: ");
    JsonNode json = Cli.run("inspect", "--json", Cli.fixture(model + "/model")).succeeds().json();
    assertThat(json.path("kind").asText()).isEqualTo("checkpoint");
    assertThat(json.path("moe_layers")).hasSize(2);
    assertThat(json.path("moe_layers").path(0).path("num_experts").asInt()).isPositive();
  }

  @Test
  void inspectAccountsForEveryTensorOfEveryAdapter() throws Exception {
    for (String model : List.of("qwen3_moe", "mixtral", "olmoe", "gpt_oss", "deepseek_v3")) {
      List<Path> adapters;
      try (var all = Files.list(Cli.FIXTURES.resolve(model).resolve("adapters"))) {
        adapters = all.sorted().toList();
      }
      for (Path adapter : adapters) {
        Cli.Result r =
            Cli.run(
                "inspect", adapter.toString(), "--model", Cli.fixture(model + "/model"), "--json");
        JsonNode json = r.json();
        boolean refused = adapter.endsWith("x_router");
        assertThat(r.code()).isEqualTo(refused ? ExitCode.ADAPTER_REFUSED : ExitCode.OK);
        assertThat(json.path("accepted").asBoolean()).isEqualTo(!refused);
        int raw =
            Cli.run("inspect", adapter + "/adapter_model.safetensors", "--json")
                .json()
                .path("tensors")
                .size();
        JsonNode counts = json.path("counts");
        assertThat(json.path("tensors")).hasSize(raw);
        assertThat(
                counts.path("applied").asInt()
                    + counts.path("skipped").asInt()
                    + counts.path("refused").asInt())
            .isEqualTo(raw);
        assertThat(counts.path("applied").asInt()).isPositive();
      }
    }
  }

  @Test
  void inspectForPeople() {
    String model = Cli.fixture("qwen3_moe/model");
    assertThat(
            Cli.run("inspect", Cli.fixture("qwen3_moe/adapters/b"), "--model", model)
                .succeeds()
                .out())
        .contains("16 tensors: 8 applied, 8 skipped, 0 refused", "q_proj", "x2", "gate", "5.657");
    Cli.Result router =
        Cli.run("inspect", Cli.fixture("qwen3_moe/adapters/x_router"), "--model", model);
    assertThat(router.code()).isEqualTo(ExitCode.ADAPTER_REFUSED);
    assertThat(router.out()).contains("4 refused", "would be REFUSED");
    assertThat(Cli.run("inspect", Cli.fixture("qwen3_moe/adapters/a")).succeeds().out())
        .contains("r=4", "lora_A", "--model DIR");
    assertThat(Cli.run("inspect", Cli.fixture("qwen3_moe/io.safetensors")).succeeds().out())
        .contains("mixed.assignment", "I64", "[17]");
  }

  /** The same file names of another trainer, told apart by what adapter_config.json holds. */
  @Test
  void inspectSaysWhoseFormAnAdapterHas() {
    Path mlx = Cli.FIXTURES.resolveSibling("cases").resolve("m06-mlx-adapter");
    String adapter = mlx.resolve("adapter").toString();
    String model = mlx.resolve("model").toString();
    assertThat(Cli.run("inspect", adapter).succeeds().out())
        .contains("mlx-lm adapter, r=4, scale=20", "switch_mlp.down_proj.lora_b");
    assertThat(Cli.run("inspect", adapter, "--model", model).succeeds().out())
        .contains("mlx-lm adapter, r=4, scale=20", "8 tensors: 8 applied");
    JsonNode json = Cli.run("inspect", adapter, "--model", model, "--json").succeeds().json();
    assertThat(json.path("config").path("form").asText()).isEqualTo("mlx");
    assertThat(json.path("config").path("scale").asDouble()).isEqualTo(20);
    assertThat(json.path("config").has("lora_alpha")).isFalse();
    assertThat(json.path("targets").path(0).path("scale").asDouble()).isEqualTo(20);
    assertThat(Cli.run("inspect", Cli.fixture("qwen3_moe/adapters/a")).succeeds().out())
        .contains("PEFT adapter, r=4, lora_alpha=");
  }

  @Test
  void completionIsAShellScript() {
    assertThat(Cli.run("completion").succeeds().out())
        .startsWith("#!/usr/bin/env bash")
        .contains("--adapter", "--plugins", "doctor");
  }

  @Test
  void helpNamesCommandsAndExitCodes() {
    String top = Cli.run("--help").succeeds().out();
    for (String command :
        List.of("run", "backends", "inspect", "bench", "tune", "doctor", "completion")) {
      assertThat(top).contains("\n  " + command + " ");
      assertThat(Cli.run(command, "--help").succeeds().out()).contains("Usage: moe " + command);
    }
    assertThat(top).contains("Exit codes:", "70");
    assertThat(Cli.run().succeeds().out()).isEqualTo(top);
    assertThat(Cli.run("--version").succeeds().out()).contains("moe4j ");
  }
}
