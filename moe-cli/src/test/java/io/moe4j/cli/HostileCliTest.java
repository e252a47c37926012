package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.checkpoint.SafetensorsWriter;
import java.io.IOException;
import java.io.StringWriter;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.LinkOption;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.condition.DisabledOnOs;
import org.junit.jupiter.api.condition.EnabledOnOs;
import org.junit.jupiter.api.condition.OS;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Nothing of the user's is destroyed or run by surprise, and no text moves the cursor. */
final class HostileCliTest {
  private static final String ESC = "\u001b]0;owned\u0007\u001b[2J\u009b31m\u202e";

  @TempDir Path dir;

  private static String[] run(String output) {
    return new String[] {
      "run",
      "--model",
      Cli.fixture("mixtral/model"),
      "--input",
      Cli.fixture("mixtral/io.safetensors") + ":layers.0.input",
      "--output",
      output
    };
  }

  @Test
  @EnabledOnOs(OS.LINUX)
  void readOnlyFilesAreNotReplaced() throws Exception {
    Path file = Files.writeString(dir.resolve("kept.safetensors"), "kept");
    Files.setPosixFilePermissions(file, PosixFilePermissions.fromString("r--r--r--"));
    Path link = Files.createSymbolicLink(dir.resolve("link"), file);
    for (Path target : List.of(file, link)) {
      Cli.Result r = Cli.run(run(target.toString()));
      assertThat(r.code()).as(r.err()).isEqualTo(ExitCode.OUTPUT);
      assertThat(r.error()).contains("read-only");
    }
    assertThat(file).hasContent("kept");
  }

  @Test
  @EnabledOnOs(OS.LINUX)
  void pipesAndDevicesAreNotReplaced() throws Exception {
    Path pipe = dir.resolve("pipe");
    assertThat(new ProcessBuilder("mkfifo", pipe.toString()).start().waitFor()).isZero();
    Path link = Files.createSymbolicLink(dir.resolve("to-null"), Path.of("/dev/null"));
    for (String target : List.of(pipe.toString(), link.toString(), "/dev/null", "/dev/stdout")) {
      Cli.Result r = Cli.run(run(target));
      assertThat(r.code()).as(r.err()).isEqualTo(ExitCode.OUTPUT);
      assertThat(r.error()).contains("a device, a pipe or a socket");
    }
    assertThat(Files.isRegularFile(pipe)).isFalse();
    assertThat(link).isSymbolicLink();
    assertThat(Files.isRegularFile(Path.of("/dev/null"))).isFalse();
    // The reports of bench alike.
    Path out = Files.createDirectory(dir.resolve("out"));
    Files.createSymbolicLink(out.resolve("bench.svg"), Path.of("/dev/null"));
    Cli.Result bench = Cli.run("bench", "--quick", "--shape", "tiny", "--out", out.toString());
    assertThat(bench.code()).as(bench.err()).isEqualTo(ExitCode.OUTPUT);
    // And whoever writes through the library.
    org.assertj.core.api.Assertions.assertThatThrownBy(() ->
            SafetensorsWriter.write(pipe, Map.of("x", Tensor.ofInts(new int[1], 1)), Map.of()))
        .isInstanceOf(io.moe4j.api.CheckpointException.class)
        .hasMessageContaining("is not a regular file");
  }

  @Test
  @DisabledOnOs(OS.WINDOWS)
  void linksAreFollowedAndStayLinks() throws Exception {
    Path there = dir.resolve("there.safetensors");
    Path first = Files.createSymbolicLink(dir.resolve("first"), Path.of("second"));
    Files.createSymbolicLink(dir.resolve("second"), Path.of("there.safetensors"));
    Cli.run(run(first.toString())).succeeds(); // what it means is not there yet
    assertThat(there).isRegularFile();
    Cli.run(run(first.toString())).succeeds(); // and is replaced
    assertThat(first).isSymbolicLink();
    assertThat(dir.resolve("second")).isSymbolicLink();
    Path circle = Files.createSymbolicLink(dir.resolve("circle"), Path.of("circle"));
    assertThat(Cli.run(run(circle.toString())).code()).isEqualTo(ExitCode.OUTPUT);
    assertThat(Files.isSymbolicLink(circle)).isTrue();
  }

  @Test
  @DisabledOnOs(OS.WINDOWS)
  void aLinkToAnInputIsTheInput() throws Exception {
    Path copy =
        Files.copy(Path.of(Cli.fixture("mixtral/io.safetensors")), dir.resolve("io.safetensors"));
    Path link = Files.createSymbolicLink(dir.resolve("link"), copy);
    byte[] before = Files.readAllBytes(copy);
    String[] args = run(link.toString());
    args[4] = copy + ":layers.0.input";
    Cli.Result r = Cli.run(args);
    assertThat(r.code()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains("is one of the inputs");
    assertThat(Files.readAllBytes(copy)).isEqualTo(before);
  }

  @Test
  void aDashIsNoFile() {
    Cli.Result r = Cli.run(run("-"));
    assertThat(r.code()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains("--output is \"-\"", "./-");
    assertThat(Files.exists(Path.of("-"), LinkOption.NOFOLLOW_LINKS)).isFalse();
  }

  @Test
  void wordsThatBeginWithAtAreWords() throws IOException {
    Path secret = Files.writeString(dir.resolve("private"), "first-word second-word");
    for (String[] args :
        List.of(
            new String[] {"inspect", "@" + secret},
            new String[] {"@" + secret},
            new String[] {"run", "--model", "@" + secret, "--input", "@x:y", "--output", "@o"})) {
      Cli.Result r = Cli.run(args);
      assertThat(r.code()).isIn(ExitCode.USAGE, ExitCode.BAD_INPUT);
      assertThat(r.err()).doesNotContain("first-word", "second-word").contains("@");
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"--plugins", "--tiles", "--output"})
  void emptyValuesAreNotTheCurrentDirectory(String option) {
    List<String> args = new ArrayList<>(List.of(run("x")));
    if (option.equals("--output")) {
      args.set(args.size() - 1, "");
    } else {
      args.addAll(List.of(option, ""));
    }
    Cli.Result r = Cli.run(args.toArray(String[]::new));
    assertThat(r.code()).as(r.err()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains(option + " is empty");
  }

  @Test
  void namesOutOfFilesAreShownNotObeyed() throws IOException {
    Path file = dir.resolve("x.safetensors");
    Map<String, Tensor> tensors = new LinkedHashMap<>();
    tensors.put(ESC + "red", Tensor.ofInts(new int[1], 1));
    tensors.put("a\nmoe: all checks passed", Tensor.ofInts(new int[1], 1));
    SafetensorsWriter.write(file, tensors, Map.of("k" + ESC, "v\n" + ESC));
    Cli.Result text = Cli.run("inspect", file.toString()).succeeds();
    requireTame(text);
    assertThat(text.out()).contains("\\u001b]0;owned\\u0007", "a\\nmoe: all checks passed");
    JsonNode json = Cli.run("inspect", "--json", file.toString()).succeeds().json();
    assertThat(json.path("tensors").findValuesAsText("name")).contains(ESC + "red");
    requireTame(Cli.run("inspect", "--json", file.toString()));

    List<String> args = new ArrayList<>(List.of(run(dir.resolve("o").toString())));
    args.set(4, file + ":nope");
    Cli.Result missing = Cli.run(args.toArray(String[]::new));
    requireTame(missing);
    assertThat(missing.error()).contains("holds no tensor", "\\u001b");

    Path adapter = Files.createDirectory(dir.resolve("adapter"));
    Files.copy(file, adapter.resolve("adapter_model.safetensors"));
    Files.writeString(
        adapter.resolve("adapter_config.json"),
        "{\"r\":4,\"lora_alpha\":8,\"peft_type\":\"LORA\",\"base_model_name_or_path\":"
            + "\"m\\u001b]8;;http://evil\\u0007click\\n\\u202e\"}",
        StandardCharsets.UTF_8);
    Cli.Result a = Cli.run("inspect", adapter.toString());
    requireTame(a);
    requireTame(Cli.run("inspect", adapter.toString(), "--model", Cli.fixture("mixtral/model")));
    requireTame(Cli.run("inspect", dir.resolve("no\u001b[31msuch\nfile").toString()));
    requireTame(Cli.run("ru\u001b[31mn"));
    requireTame(Cli.run("bench", "--shape", "\u001b[31m"));
  }

  private static void requireTame(Cli.Result r) {
    for (String text : List.of(r.out(), r.err())) {
      assertThat(
              text.codePoints()
                  .filter(c -> c != '\n' && c != '\r' && c != '\t' && Text.isUnsafe(c)))
          .as(r.err())
          .isEmpty();
      assertThat(text.lines()).noneMatch(l -> l.startsWith("moe: all checks"));
    }
  }

  @Test
  void aFullOrClosedStandardOutputIsAnError() {
    StringWriter err = new StringWriter();
    for (String[] args :
        List.of(
            new String[] {"inspect", Cli.fixture("mixtral/model")},
            new String[] {"inspect", "--json", Cli.fixture("mixtral/model")},
            new String[] {"backends"},
            new String[] {"backends", "--json"},
            new String[] {"doctor"},
            new String[] {"completion"},
            new String[] {"--version"},
            new String[] {"--help"},
            new String[] {"help", "run"},
            new String[] {"bench", "--help"})) {
      int code =
          Moe.run(Terminal.of(new FailureWriter(new Full("No space left on device")), err), args);
      assertThat(code).as(String.join(" ", args)).isEqualTo(ExitCode.OUTPUT);
      assertThat(err.toString()).contains("could not be written", "No space left");
    }
    // What else went wrong is told first.
    assertThat(
            Moe.run(
                Terminal.of(new FailureWriter(new Full("No space left on device")), err),
                "inspect",
                "/no/such"))
        .isEqualTo(ExitCode.BAD_INPUT);
  }

  /** {@code moe ... | head -1}: the reader has had enough, which is nobody's fault. */
  @Test
  void aPipeThatIsClosedEndsTheCommandQuietly() {
    for (String[] args :
        List.of(
            new String[] {"inspect", "--json", Cli.fixture("mixtral/model")},
            new String[] {"backends"},
            new String[] {"completion"},
            new String[] {"--help"})) {
      StringWriter err = new StringWriter();
      int code = Moe.run(Terminal.of(new FailureWriter(new Full("Broken pipe")), err), args);
      assertThat(code).as(String.join(" ", args)).isEqualTo(ExitCode.CLOSED_PIPE);
      assertThat(err.toString()).isEmpty();
    }
  }

  /** Like {@code /dev/full}. */
  private static final class Full extends Writer {
    private final String reason;

    Full(String reason) {
      this.reason = reason;
    }

    @Override
    public void write(char[] chars, int from, int count) throws IOException {
      throw new IOException(reason);
    }

    @Override
    public void flush() {}

    @Override
    public void close() {}
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "--help",
        "run --help",
        "bench --help",
        "tune --help",
        "inspect --help",
        "backends --help",
        "doctor --help",
        "completion --help",
        "help",
        "backends",
        "backends --lora",
        "doctor",
        "inspect MIXTRAL/model",
        "inspect MIXTRAL/adapters/a",
        "inspect MIXTRAL/io.safetensors",
        "inspect MIXTRAL/adapters/a --model MIXTRAL/model",
        "run --backend cpu-reference",
        "run --backend nonsense",
        "runn",
        "bench --shape huge",
        "tune",
      })
  void everythingFitsSixtyColumns(String command) {
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    String root = Cli.fixture("mixtral");
    Terminal terminal = Terminal.of(out, err, 60);
    Moe.run(terminal, command.replace("MIXTRAL", root).split(" "));
    for (String line : (out + "\n" + err).lines().toList()) {
      String plain = line.replaceAll("\u001b\\[[0-9;]*m", "");
      boolean oneWord = !plain.strip().contains(" ");
      assertThat(plain.length() <= 60 || oneWord || plain.contains("/")).as(plain).isTrue();
    }
  }

  @Test
  void everyDocumentSaysWhatItIs() {
    Map<String, String> commands =
        Map.of(
            "backends --json",
            "moe4j.backends",
            "doctor --json",
            "moe4j.doctor",
            "inspect --json " + Cli.fixture("mixtral/model"),
            "moe4j.inspect.checkpoint",
            "inspect --json " + Cli.fixture("mixtral/io.safetensors"),
            "moe4j.inspect.file",
            "inspect --json " + Cli.fixture("mixtral/adapters/a"),
            "moe4j.inspect.adapter",
            String.join(" ", run(dir.resolve("o").toString())) + " --json",
            "moe4j.run");
    commands.forEach((command, schema) -> {
      JsonNode json = Cli.run(command.split(" ")).json();
      assertThat(json.path("schema").asText()).as(command).isEqualTo(schema);
      assertThat(json.path("schema_version").asInt()).isEqualTo(1);
    });
  }

  @Test
  void sizesThatNoLayerHasAreAWrongCommandLine() {
    for (String shape : List.of("64x80x256x128", "0x1x256x128", "8x0x256x128", "8x2x0x128")) {
      Cli.Result r = Cli.run("bench", "--shape", shape);
      assertThat(r.code()).as(r.err()).isEqualTo(ExitCode.USAGE);
      assertThat(r.error()).contains("--shape is \"" + shape + "\"");
    }
  }

  @ParameterizedTest
  @ValueSource(strings = {"1025", "100000", "2147483647"})
  void tooManyThreads(String threads) {
    Cli.Result r = Cli.run("run", "--threads", threads);
    assertThat(r.code()).isEqualTo(ExitCode.USAGE);
    assertThat(r.error()).contains("--threads is " + threads + ", must be 1..1024");
  }

  @Test
  void completionKnowsTheValues() {
    String script = Cli.run("completion").succeeds().out();
    assertThat(script).contains("olmoe", "bf16", "cpu-reference", "\"cuda\"", "\"all\"");
  }

  /** Of the process, not of this JVM: the environment is the process's. */
  @Test
  void anEmptyPluginsVariableIsLikeNone() throws Exception {
    for (String value : List.of("", "  ")) {
      ProcessBuilder builder = java("backends", "--json");
      builder.directory(dir.toFile());
      builder.environment().put("MOE_PLUGINS", value);
      Path jar = dir.resolve("something.jar");
      Files.writeString(jar, "not even a jar: a row, if anybody looked here");
      Process p = builder.start();
      String out = new String(p.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
      assertThat(p.waitFor(60, TimeUnit.SECONDS)).isTrue();
      assertThat(p.exitValue()).isZero();
      assertThat(out).doesNotContain("something.jar");
    }
    ProcessBuilder builder = java("backends");
    builder.environment().put("MOE_PLUGINS", "/no/such/folder");
    Process p = builder.start();
    String err = new String(p.getErrorStream().readAllBytes(), StandardCharsets.UTF_8);
    p.waitFor(60, TimeUnit.SECONDS);
    assertThat(p.exitValue()).isEqualTo(ExitCode.BAD_INPUT);
    assertThat(err.replaceAll("\\s+", " ")).contains("MOE_PLUGINS /no/such/folder does not exist");
  }

  private static ProcessBuilder java(String... args) {
    List<String> command = new ArrayList<>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(List.of("-cp", System.getProperty("java.class.path"), Moe.class.getName()));
    command.addAll(List.of(args));
    ProcessBuilder builder = new ProcessBuilder(command);
    builder.environment().remove("MOE_PLUGINS");
    return builder;
  }

  @Test
  void linesBreakAtSpaces() {
    String broken = SafeWriter.broken("  one two three four five six seven", 20);
    assertThat(broken.lines()).containsExactly("  one two three four", "      five six seven");
    assertThat(SafeWriter.broken("short", 20)).isEqualTo("short");
    String word = "x".repeat(30);
    assertThat(SafeWriter.broken("a " + word + " b", 20).lines())
        .containsExactly("a", "    " + word, "    b");
    // Tables that are too wide.
    assertThat(SafeWriter.broken("*  cpu        100  chosen", 20)).isEqualTo("*  cpu  100  chosen");
    assertThat(SafeWriter.broken(" ".repeat(30) + "takes batched activations", 30).lines())
        .containsExactly("        takes batched", "            activations");
  }
}
