package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Each error: its exit code, one paragraph that names what to change, no stack trace. */
final class ErrorsTest {
  private static final String IO = Cli.fixture("qwen3_moe/io.safetensors");

  @TempDir Path dir;

  private Cli.Result runModel(String... more) {
    List<String> all = new ArrayList<>(List.of("run", "--model", Cli.fixture("qwen3_moe/model")));
    all.addAll(List.of(more));
    if (!all.contains("--input")) {
      all.addAll(List.of("--input", IO + ":layers.0.input"));
    }
    if (!all.contains("--output")) {
      all.addAll(List.of("--output", dir.resolve("out.safetensors").toString()));
    }
    return Cli.run(all.toArray(String[]::new));
  }

  private static void isParagraph(Cli.Result r, int code, String... says) {
    assertThat(r.code()).as(r.err()).isEqualTo(code);
    assertThat(r.error()).contains(says);
    assertThat(r.err()).doesNotContain("\tat ").startsWith("moe: ");
    assertThat(r.out()).isEmpty();
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "run --modell | 2 | Unknown option: '--modell'",
        "runn | 2 | Did you mean: moe run",
        "run --layer 1 | 2 | go with --model DIR",
        "run --model x | 2 | needs --input FILE.safetensors:TENSOR and --output",
        "run --threads 0 | 2 | --threads is 0, must be 1..1024",
        "run --threads many | 2 | 'many' is not an int",
        "run --plugins /no/such/folder | 3 | --plugins /no/such/folder does not exist",
        "run --backend nonsense | 5 | backend \"nonsense\" was asked for and is not known",
        "inspect | 2 | Missing required parameter: 'PATH'",
        "inspect /no/such/folder | 3 | /no/such/folder does not exist",
        "bench --tokens 0 | 2 | --tokens is 0",
        "bench --shape huge | 2 | known are olmoe",
        "bench --dtype int3 | 2 | accepted are bf16, f16, f32, int4",
        "bench --rank 0 | 2 | rank 1..4096",
        "bench --peers /no/such/file | 3 | --peers /no/such/file does not exist",
        "backends --layer 1 | 2 | --layer goes with --model",
      })
  void wrongCommandLines(String command, int code, String says) {
    isParagraph(Cli.run(command.strip().split(" ")), code, says.strip());
  }

  @Test
  void aMistypedPropertyIsAWrongCommandLine() {
    System.setProperty("moe4j.cpu.threads", "many");
    try {
      isParagraph(
          Cli.run("bench", "--quick", "--tokens", "1", "--shape", "tiny"),
          ExitCode.USAGE,
          "-Dmoe4j.cpu.threads is \"many\", accepted: 1..1024");
    } finally {
      System.clearProperty("moe4j.cpu.threads");
    }
  }

  @Test
  void anOptionThatSaysNothingHereIsRefused() {
    Cli.Result r =
        Cli.run(
            "inspect",
            Cli.fixture("mixtral/io.safetensors"),
            "--model",
            Cli.fixture("mixtral/model"));
    assertThat(r.code()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains("--model is the checkpoint that an adapter is for");
  }

  @Test
  void wrongInputs() {
    isParagraph(runModel("--input", IO + ":nope"), 3, "holds no tensor \"nope\"", "and");
    isParagraph(runModel("--input", IO), 2, "must be FILE.safetensors:TENSOR");
    isParagraph(runModel("--input", IO + ":mixed.assignment"), 3, "must be F32, BF16 or F16");
    isParagraph(runModel("--input", IO + ":layers.0.router_logits"), 3, "H = 128");
    isParagraph(runModel("--input", "/no/such.safetensors:x"), 3, "does not exist");
    isParagraph(runModel("--layer", "9"), 2, "the MoE layers of", "[0, 1]");
    isParagraph(runModel("--layer", "last"), 2, "must be a number or all");
    isParagraph(runModel("--output", "/no/such/folder/out"), 7, "does not exist");
    isParagraph(runModel("--output", dir.toString()), 7, "is a directory");
    isParagraph(
        Cli.run("run", "--model", "/no/model", "--input", IO + ":x", "--output", "/tmp/x"),
        3,
        "--model /no/model does not exist");
  }

  @Test
  void wrongAdapters() {
    String a = Cli.fixture("qwen3_moe/adapters/a");
    isParagraph(runModel("--adapter", a), 2, "must be NAME=DIR");
    isParagraph(runModel("--adapter", "base=" + a), 2, "base, which means no adapter");
    isParagraph(runModel("--adapter", "a=" + a, "--adapter", "a=" + a), 2, "\"a\" twice");
    isParagraph(runModel("--adapter", "a=/no/such"), 3, "/no/such does not exist");
    isParagraph(
        runModel("--adapter", "a=" + a, "--adapter", "b=" + a),
        2,
        "there are 2 adapters",
        "--assign");
    isParagraph(runModel("--adapter", "a=" + a, "--assign", "base,z"), 2, "names \"z\"", "base, a");
    isParagraph(
        runModel("--adapter", "a=" + a, "--assign", "a,".repeat(20) + "a"), 2, "21 names for 17");
    isParagraph(
        runModel("--adapter", "a=" + a, "--assign", IO + ":mixed.assignment"), 3, "0 (base) to 1");
    isParagraph(
        runModel("--adapter", "a=" + a, "--assign", IO + ":layers.0.input"),
        3,
        "one integer for each of the 17 tokens");
    isParagraph(
        runModel("--adapter", "r=" + Cli.fixture("qwen3_moe/adapters/x_router")),
        4,
        "is refused",
        "router",
        "--policy lenient");
    isParagraph(
        runModel("--adapter", "m=" + Cli.fixture("mixtral/adapters/a")), 4, "is refused", "sides");
  }

  @Test
  void routerAdapterLoadsWhenTheUserSaysSo() {
    Cli.Result r =
        runModel(
            "--policy", "lenient", "--adapter", "r=" + Cli.fixture("qwen3_moe/adapters/x_router"));
    r.succeeds();
    assertThat(r.err()).contains("4 of 12 tensors were left out");
  }

  @Test
  void damagedFiles() throws Exception {
    Path model = Files.createDirectory(dir.resolve("model"));
    isParagraph(Cli.run("inspect", model.toString()), 3, "neither config.json");
    Files.writeString(model.resolve("config.json"), "{\"model_type\": \"gpt2\"}");
    isParagraph(Cli.run("inspect", model.toString()), 3, "model_type is 'gpt2'", "known are");
    Files.writeString(model.resolve("config.json"), "{ no json");
    isParagraph(Cli.run("inspect", model.toString()), 3, "config.json");
    Path file = Files.writeString(dir.resolve("x.safetensors"), "much too short");
    isParagraph(Cli.run("inspect", file.toString()), 3, "x.safetensors");
  }

  @Test
  void stackTraceOnlyWhenAskedFor() {
    Cli.Result r = Cli.run("inspect", "/no/such/folder", "--verbose");
    assertThat(r.code()).isEqualTo(ExitCode.BAD_INPUT);
    assertThat(r.err()).contains("\tat io.moe4j.cli.");
  }

  @Test
  void unforeseenFaultsSaySo() {
    java.io.StringWriter err = new java.io.StringWriter();
    Terminal terminal =
        Terminal.of(
            new java.io.PrintWriter(new java.io.StringWriter()), new java.io.PrintWriter(err));
    int code = new ErrorPrinter(new Moe(terminal)).report(new IllegalStateException("broken"));
    assertThat(code).isEqualTo(ExitCode.INTERNAL);
    assertThat(err.toString()).contains("fault in moe4j or in a plugin", "broken", "--verbose");
    assertThat(new ErrorPrinter(new Moe(terminal)).report(new OutOfMemoryError("Java heap space")))
        .isEqualTo(ExitCode.DEVICE);
    assertThat(err.toString()).contains("MOE_JAVA_OPTS=-Xmx");
  }
}
