package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Set;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Command lines put together by chance, from options that exist and values that are strange: each
 * ends with a documented exit code, one that says "moe:" and no stack trace, and no control
 * character reaches the terminal. {@code -Dmoe.fuzz.seconds=3600} goes on for an hour; the default
 * is 10 seconds. The seed is in the message.
 */
final class FuzzCliTest {
  private static final Set<Integer> DOCUMENTED = Set.of(0, 1, 2, 3, 4, 5, 6, 7);
  private static final List<String> COMMANDS =
      List.of("inspect", "run", "backends", "completion", "help", "nonsense", "");
  private static final List<String> OPTIONS =
      List.of(
          "--model",
          "--input",
          "--output",
          "--adapter",
          "--assign",
          "--layer",
          "--policy",
          "--backend",
          "--plugins",
          "--threads",
          "--lora",
          "--json",
          "--quiet",
          "--verbose",
          "--nonsense",
          "--version",
          "--help");

  @TempDir Path dir;

  private List<String> values() throws IOException {
    byte[] real = Files.readAllBytes(Path.of(Cli.fixture("mixtral/io.safetensors")));
    SplittableRandom rng = new SplittableRandom(7);
    byte[] flipped = real.clone();
    for (int i = 0; i < 40; i++) {
      flipped[rng.nextInt(400)] = (byte) rng.nextInt();
    }
    Path damaged = Files.write(dir.resolve("damaged.safetensors"), flipped);
    Path cut = Files.write(dir.resolve("cut.safetensors"), Arrays.copyOf(real, real.length / 2));
    Path empty = Files.createFile(dir.resolve("empty.safetensors"));
    Path folder = Files.createDirectory(dir.resolve("folder"));
    Path config = Files.createDirectory(dir.resolve("config"));
    Files.writeString(config.resolve("config.json"), "{\"model_type\": [[[[[");
    Path rude = Files.createDirectory(dir.resolve("rude"));
    Files.writeString(rude.resolve("config.json"), "{\"model_type\": \"\\u001b[2J\\nmoe: fine\"}");
    Path jars = Files.createDirectory(dir.resolve("jars"));
    Files.writeString(jars.resolve("\u00fc x.jar"), "no jar");
    return List.of(
        Cli.fixture("mixtral/model"),
        Cli.fixture("qwen3_moe/model"),
        Cli.fixture("mixtral/adapters/a"),
        "a=" + Cli.fixture("mixtral/adapters/a"),
        Cli.fixture("mixtral/io.safetensors"),
        Cli.fixture("mixtral/io.safetensors") + ":layers.0.input",
        damaged + ":layers.0.input",
        damaged.toString(),
        cut + ":layers.0.input",
        cut.toString(),
        empty.toString(),
        folder.toString(),
        config.toString(),
        rude.toString(),
        jars.toString(),
        dir.resolve("out.safetensors").toString(),
        "/dev/null",
        "/proc/self/mem",
        "",
        " ",
        "-",
        "--",
        "@" + damaged,
        "\u001b[31mred\nmoe: fine",
        "\u202eelif",
        "0",
        "1",
        "-1",
        "99999999999999999999",
        "NaN",
        "all",
        "cpu",
        "lenient",
        "a,b,,base",
        "=",
        "a=",
        ":",
        "x".repeat(5000));
  }

  @Test
  void everyCommandLineEndsInOrder() throws IOException {
    List<String> values = values();
    long end = System.nanoTime() + 1_000_000_000L * Long.getLong("moe.fuzz.seconds", 10);
    for (long seed = 0; seed < 200 || System.nanoTime() < end; seed++) {
      SplittableRandom rng = new SplittableRandom(seed);
      List<String> args = new ArrayList<>();
      args.add(COMMANDS.get(rng.nextInt(COMMANDS.size())));
      if (args.getFirst().equals("inspect") || rng.nextInt(8) == 0) {
        args.add(values.get(rng.nextInt(values.size())));
      }
      for (int n = rng.nextInt(6); n > 0; n--) {
        args.add(OPTIONS.get(rng.nextInt(OPTIONS.size())));
        if (rng.nextInt(5) != 0) {
          args.add(values.get(rng.nextInt(values.size())));
        }
      }
      if (args.equals(List.of("run"))) {
        continue; // the sample takes seconds, and has a test of its own
      }
      long start = System.nanoTime();
      Cli.Result r = Cli.run(args.toArray(String[]::new));
      String what = "seed " + seed + ": " + args + "\n" + r.err();
      assertThat(DOCUMENTED).as(what).contains(r.code());
      if (r.code() > 1 && r.out().isEmpty()) {
        assertThat(r.err()).as(what).contains("moe: ");
      }
      if (!args.contains("--verbose")) {
        assertThat(r.err()).as(what).doesNotContain("\tat ");
      }
      for (String text : List.of(r.out(), r.err())) {
        assertThat(text.codePoints().filter(c -> c != '\n' && c != '\t' && Text.isUnsafe(c)))
            .as(what)
            .isEmpty();
        assertThat(text.lines()).as(what).noneMatch(l -> l.strip().equals("moe: fine"));
      }
      // A bound for what never ends, not a measurement.
      assertThat(System.nanoTime() - start).as(what).isLessThan(60_000_000_000L);
    }
  }
}
