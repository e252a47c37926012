package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.assertj.core.data.Offset;
import org.junit.jupiter.api.Test;

/** Ranks in JVMs of their own that find each other as below torchrun, over loopback. */
class ProcessesTest {
  private static final int RANKS = 2;

  static int freePort() throws IOException {
    try (ServerSocket s = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      return s.getLocalPort();
    }
  }

  /** Starts a rank in a JVM like this one. */
  static Process start(Class<?> main, int rank, int ranks, int port, String... args)
      throws IOException {
    List<String> command =
        new ArrayList<>(
            List.of(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "--add-modules=jdk.incubator.vector",
                "--enable-native-access=ALL-UNNAMED",
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-cp",
                System.getProperty("java.class.path"),
                main.getName()));
    command.addAll(List.of(args));
    ProcessBuilder builder = new ProcessBuilder(command);
    builder
        .environment()
        .putAll(
            Map.of(
                "RANK", "" + rank,
                "LOCAL_RANK", "" + rank,
                "WORLD_SIZE", "" + ranks,
                "MASTER_ADDR", "127.0.0.1",
                "MASTER_PORT", "" + port));
    return builder.redirectErrorStream(true).start();
  }

  /** {@return what each rank printed} */
  private List<List<String>> run(String mode) throws Exception {
    int port = freePort();
    List<Process> ranks = new ArrayList<>();
    for (int r = 0; r < RANKS; r++) {
      ranks.add(start(ProcessesMain.class, r, RANKS, port, mode));
    }
    try {
      List<List<String>> printed = new ArrayList<>();
      for (Process p : ranks) {
        printed.add(
            new String(p.getInputStream().readAllBytes(), StandardCharsets.UTF_8)
                .lines()
                .filter(l -> !l.startsWith("WARNING: "))
                .toList());
        assertThat(p.waitFor(60, TimeUnit.SECONDS)).isTrue();
      }
      return printed;
    } finally {
      ranks.forEach(Process::destroyForcibly);
    }
  }

  @Test
  void twoProcessesGiveWhatOneGivesUntilOneDies() throws Exception {
    RankedLayer model = new RankedLayer();
    Tensor[] hidden = model.hidden(RANKS);
    List<List<String>> printed = run("die");
    for (int r = 0; r < RANKS; r++) {
      List<String> mine = printed.get(r).stream().filter(l -> l.startsWith("result ")).toList();
      assertThat(mine).as("rank %s printed %s", r, printed.get(r)).hasSize(2);
      assertThat(mine).as("the same bits each time").containsOnly(mine.getFirst());
      double[] truth =
          model
              .run(RankedLayer.config().build(), null, hidden[r], RankedLayer.names(r))
              .toDoubles();
      byte[] bits = HexFormat.of().parseHex(mine.getFirst().substring("result ".length()));
      double[] got =
          Tensor.of(io.moe4j.api.tensor.DType.F32, MemorySegment.ofArray(bits), hidden[r].shape())
              .toDoubles();
      assertThat(got).hasSameSizeAs(truth);
      for (int i = 0; i < truth.length; i++) {
        assertThat(got[i]).isCloseTo(truth[i], Offset.offset(2e-5));
      }
    }
    assertThat(printed.getFirst().getLast())
        .startsWith("failed 1 rank 1 of 2 at 127.0.0.1:")
        .contains("ended");
  }

  @Test
  void processesThatDisagreeAreToldWhatDiffersOnEveryRank() throws Exception {
    for (List<String> lines : run("differ")) {
      assertThat(lines.getLast())
          .startsWith("failed 1 layer 0: rank 1 has ")
          .contains("maxTokens=33", "rank 0 has ", "maxTokens=32");
    }
  }
}
