package io.moe4j.cli;

import static org.assertj.core.api.Assertions.assertThat;

import com.fasterxml.jackson.databind.JsonNode;
import io.moe4j.checkpoint.SafetensorsFile;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** {@code moe run} in several processes; here in threads, each with its rank as an option. */
class RanksRunTest {
  @TempDir Path dir;

  private static List<Cli.Result> onAll(int ranks, String... args) throws Exception {
    int port = freePort();
    try (ExecutorService threads = Executors.newFixedThreadPool(ranks)) {
      List<Future<Cli.Result>> started = new ArrayList<>();
      for (int r = 0; r < ranks; r++) {
        List<String> all = new ArrayList<>(Arrays.asList(args));
        all.addAll(
            List.of("--ranks", "" + ranks, "--rank", "" + r, "--master", "127.0.0.1:" + port));
        started.add(threads.submit(() -> Cli.run(all.toArray(String[]::new))));
      }
      List<Cli.Result> done = new ArrayList<>();
      for (Future<Cli.Result> f : started) {
        done.add(f.get());
      }
      return done;
    }
  }

  private static int freePort() throws IOException {
    try (ServerSocket s = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      return s.getLocalPort();
    }
  }

  @Test
  void theSampleOnTwoRanks() throws Exception {
    List<Cli.Result> done = onAll(2, "run");
    done.forEach(Cli.Result::succeeds);
    assertThat(done.get(0).out())
        .contains("2 ranks", "over tcp", "All 4 layers agree")
        .doesNotContain("FAILED");
    assertThat(done.get(1).out()).isEmpty();
  }

  @Test
  void theSampleOnTwoRanksThatHaveAllTokens() throws Exception {
    for (String tp : List.of("1", "2")) {
      List<Cli.Result> done = onAll(2, "run", "--tp", tp, "--replicated");
      done.forEach(Cli.Result::succeeds);
      assertThat(done.get(0).out())
          .contains("2 ranks, each with all tokens", "exchange: allreduce", "All 4 layers agree")
          .doesNotContain("FAILED");
      assertThat(done.get(1).out()).isEmpty();
    }
  }

  @Test
  void aModelOnFourRanksOfWhichTwoShareEachExpert() throws Exception {
    modelOnFourRanks("--tp", "2");
  }

  @Test
  void aModelOnFourRanksThatHaveAllTokens() throws Exception {
    JsonNode json = modelOnFourRanks("--tp", "2", "--replicated");
    assertThat(json.get("replicated_tokens").asBoolean()).isTrue();
    assertThat(json.get("exchange").asText()).contains("allreduce");
  }

  private JsonNode modelOnFourRanks(String... options) throws Exception {
    Path out = dir.resolve("four.safetensors");
    String[] args = {
      "run",
      "--model",
      Cli.fixture("mixtral/model"),
      "--layer",
      "all",
      "--adapter",
      "a=" + Cli.fixture("mixtral/adapters/a"),
      "--adapter",
      "b=" + Cli.fixture("mixtral/adapters/b"),
      "--assign",
      "base,a,b",
      "--input",
      Cli.fixture("mixtral/io.safetensors") + ":layers.0.input"
    };
    List<String> four = new ArrayList<>(Arrays.asList(args));
    four.addAll(List.of(options));
    four.addAll(List.of("--json", "--output", out.toString()));
    List<Cli.Result> done = onAll(4, four.toArray(String[]::new));
    done.forEach(Cli.Result::succeeds);
    JsonNode json = done.getFirst().json();
    assertThat(json.get("schema").asText()).contains("run.ranks");
    assertThat(json.get("ranks").asInt()).isEqualTo(4);
    assertThat(json.get("passed").asBoolean()).isTrue();

    Path alone = dir.resolve("one.safetensors");
    List<String> one = new ArrayList<>(Arrays.asList(args));
    one.addAll(List.of("--output", alone.toString()));
    Cli.run(one.toArray(String[]::new)).succeeds();
    try (SafetensorsFile a = SafetensorsFile.open(out);
        SafetensorsFile b = SafetensorsFile.open(alone)) {
      assertThat(a.tensors().keySet()).isEqualTo(b.tensors().keySet());
      for (int layer = 0; layer < 2; layer++) {
        String name = "layers." + layer + ".";
        assertThat(SampleRun.relativeError(a.tensor(name + "output"), b.tensor(name + "output")))
            .isLessThan(1e-5);
        assertThat(a.tensor(name + "topk_ids").toInts())
            .isEqualTo(b.tensor(name + "topk_ids").toInts());
      }
    }
    return json;
  }

  @Test
  void ranksThatSpreadTheSampleDifferentlyAreTold() throws Exception {
    int port = freePort();
    String[] rank = {"run", "--ranks", "2", "--master", "127.0.0.1:" + port, "--rank"};
    try (ExecutorService threads = Executors.newFixedThreadPool(2)) {
      Future<Cli.Result> own = threads.submit(() -> Cli.run(concat(rank, "0")));
      Future<Cli.Result> all = threads.submit(() -> Cli.run(concat(rank, "1", "--replicated")));
      for (Cli.Result r : List.of(own.get(), all.get())) {
        assertThat(r.code()).isEqualTo(ExitCode.DEVICE);
        assertThat(r.error()).contains("rank 1 has sample --replicated", "rank 0 has sample");
      }
    }
  }

  @Test
  void ranksThatRunSomethingElseAreTold() throws Exception {
    int port = freePort();
    String[] rank = {"run", "--ranks", "2", "--master", "127.0.0.1:" + port, "--rank"};
    try (ExecutorService threads = Executors.newFixedThreadPool(2)) {
      Future<Cli.Result> sample = threads.submit(() -> Cli.run(concat(rank, "0")));
      Future<Cli.Result> model =
          threads.submit(() ->
              Cli.run(
                  concat(
                      rank,
                      "1",
                      "--model",
                      Cli.fixture("mixtral/model"),
                      "--input",
                      Cli.fixture("mixtral/io.safetensors") + ":layers.0.input",
                      "--output",
                      dir.resolve("none.safetensors").toString())));
      for (Cli.Result r : List.of(sample.get(), model.get())) {
        assertThat(r.code()).isEqualTo(ExitCode.DEVICE);
        assertThat(r.error()).contains("rank 1 has", "rank 0 has sample");
      }
    }
  }

  private static String[] concat(String[] first, String... more) {
    List<String> all = new ArrayList<>(Arrays.asList(first));
    all.addAll(Arrays.asList(more));
    return all.toArray(String[]::new);
  }

  @Test
  void optionsThatDoNotFitAreRefused() {
    assertThat(Cli.run("run", "--ranks", "2").error())
        .contains("worldSize is 2 and rank null, must be given together");
    assertThat(Cli.run("run", "--ranks", "2", "--rank", "0", "--master", "here").error())
        .contains("--master is \"here\", must be HOST:PORT");
    assertThat(
            Cli.run("run", "--ranks", "4", "--rank", "0", "--master", "a:1", "--tp", "3").error())
        .contains("--tp is 3, must divide the number of ranks, 4");
    assertThat(Cli.run("run", "--replicated").error())
        .contains("--replicated is given; it is for several ranks, this is one");
  }
}
