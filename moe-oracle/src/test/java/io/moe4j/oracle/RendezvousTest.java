package io.moe4j.oracle;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.comm.RankInfo;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.reference.HostDevice;
import io.moe4j.reference.InProcessGroup;
import java.io.IOException;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

class RendezvousTest {
  private static final Device HOST = new HostDevice(DeviceInfo.of(DeviceId.CPU, "host"));

  /** Ranks are threads here; what brings them together are sockets all the same. */
  private static class Threads implements CommProvider {
    private static final Map<String, List<Communicator>> GROUPS = new ConcurrentHashMap<>();
    private static final AtomicInteger NEXT = new AtomicInteger();
    private final String version;

    Threads(String version) {
      this.version = version;
    }

    @Override
    public String name() {
      return "threads";
    }

    @Override
    public String version() {
      return version;
    }

    @Override
    public DeviceType deviceType() {
      return DeviceType.CPU;
    }

    @Override
    public Optional<String> whyUnsupported(Platform platform) {
      return version.isEmpty() ? Optional.of("no version") : Optional.empty();
    }

    @Override
    public String newGroup() {
      return "group " + NEXT.incrementAndGet();
    }

    @Override
    public Communicator open(CommConfig config, Device device) {
      return GROUPS
          .computeIfAbsent(
              config.group(), g -> InProcessGroup.create(config.size(), config.deadline()))
          .get(config.rank());
    }
  }

  private static int freePort() throws IOException {
    try (ServerSocket s = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      return s.getLocalPort();
    }
  }

  private static RankInfo rank(int rank, int size, int port) {
    return new RankInfo(size, rank, rank, "127.0.0.1", port, "test");
  }

  private interface Join {
    Communicator rank(int rank, int port);
  }

  /** {@return what each rank got: a communicator, or an exception} */
  private static List<Object> all(int ranks, Join join) throws Exception {
    int port = freePort();
    try (ExecutorService threads = Executors.newCachedThreadPool()) {
      List<Future<Communicator>> started = new ArrayList<>();
      for (int r = 0; r < ranks; r++) {
        int rank = r;
        started.add(threads.submit(() -> join.rank(rank, port)));
      }
      List<Object> got = new ArrayList<>();
      for (Future<Communicator> f : started) {
        try {
          got.add(f.get());
        } catch (ExecutionException e) {
          got.add(e.getCause());
        }
      }
      return got;
    }
  }

  private static Communicator join(int rank, int size, int port, Map<String, String> said) {
    return Rendezvous.join(
        rank(rank, size, port), new Threads("1"), HOST, said, Duration.ofSeconds(20));
  }

  private static void allRefused(List<Object> got, int rank, String message) {
    assertThat(got)
        .allSatisfy(g -> {
          assertThat(g).isInstanceOf(CommException.class);
          CommException e = (CommException) g;
          assertThat(e.rank()).isEqualTo(rank);
          assertThat(e).hasMessageContaining(message);
        });
  }

  @Test
  void allRanksGetOneGroup() throws Exception {
    List<Object> got = all(3, (rank, port) -> join(rank, 3, port, Map.of("layer", "x")));
    for (int r = 0; r < 3; r++) {
      assertThat(got.get(r)).isInstanceOf(Communicator.class);
      assertThat(((Communicator) got.get(r)).rank()).isEqualTo(r);
      assertThat(((Communicator) got.get(r)).size()).isEqualTo(3);
    }
  }

  @Test
  void oneProcessMeetsNobody() {
    try (Communicator alone =
        Rendezvous.join(RankInfo.SINGLE, new Threads("1"), HOST, Map.of(), Duration.ofSeconds(1))) {
      assertThat(alone.size()).isEqualTo(1);
    }
  }

  @Test
  void whatDiffersIsAnErrorOnEveryRank() throws Exception {
    allRefused(
        all(3, (rank, port) -> join(rank, 3, port, Map.of("layer 4", rank == 2 ? "b" : "a"))),
        2,
        "layer 4: rank 2 has b, rank 0 has a");
    allRefused(
        all(2, (rank, port) -> join(rank, 2, port, rank == 0 ? Map.of() : Map.of("layer 4", "a"))),
        1,
        "layer 4: rank 1 has a, rank 0 has nothing");
    allRefused(
        all(
            3,
            (rank, port) ->
                Rendezvous.join(
                    rank(rank, 3, port),
                    new Threads(rank == 1 ? "2.28" : "2.27"),
                    HOST,
                    Map.of(),
                    Duration.ofSeconds(20))),
        1,
        "communication: rank 1 has threads 2.28, rank 0 has threads 2.27");
  }

  /** Ranks that exchange in different ways would wait for each other, or add up what is no sum. */
  @Test
  void anotherSettingOfTheExchangeIsAnErrorOnEveryRank() throws Exception {
    allRefused(
        all(2, (rank, port) -> joinWith(rank, port, "sums", rank == 0 ? "BF16 " : "f32")),
        1,
        "-Dmoe4j.exchange.sums: rank 1 has f32, rank 0 has bf16");
    allRefused(
        all(2, (rank, port) -> joinWith(rank, port, "adds", rank == 0 ? "" : "off")),
        1,
        "-Dmoe4j.exchange.adds: rank 1 has off, rank 0 has nothing");
    assertThat(all(2, (rank, port) -> joinWith(rank, port, "sums", rank == 0 ? "BF16 " : "bf16")))
        .allSatisfy(g -> assertThat(g).isInstanceOf(Communicator.class));
  }

  private static Communicator joinWith(int rank, int port, String setting, String value) {
    Properties properties = new Properties();
    properties.setProperty("moe4j.exchange." + setting, value);
    properties.setProperty("moe4j.other", Integer.toString(rank));
    return Rendezvous.join(
        rank(rank, 2, port), new Threads("1"), HOST, Map.of(), Duration.ofSeconds(20), properties);
  }

  @Test
  void anotherNumberOfRanksIsAnErrorOnEveryRank() throws Exception {
    List<Object> got = all(3, (rank, port) -> join(rank, rank == 0 ? 2 : 3, port, Map.of()));
    // whichever of the others came first; the last one comes when it is decided
    allRefused(got, ((CommException) got.getFirst()).rank(), "has 3, rank 0 has 2");
  }

  @Test
  void aRankThatComesTwiceIsAnError() throws Exception {
    allRefused(
        all(3, (rank, port) -> join(rank == 2 ? 1 : rank, 3, port, Map.of())),
        1,
        "rank 1 came twice");
  }

  @Test
  void ranksThatDoNotComeAreNamedToThoseThatDid() throws Exception {
    List<Object> got =
        all(
            2,
            (rank, port) ->
                Rendezvous.join(
                    rank(rank, 4, port), new Threads("1"), HOST, Map.of(), Duration.ofMillis(700)));
    allRefused(got, 2, "rank 2, rank 3 of 4 did not come to 127.0.0.1:");
  }

  @Test
  void aMissingRankZeroIsNamed() throws Exception {
    int port = freePort();
    assertThatThrownBy(() ->
            Rendezvous.join(
                rank(1, 2, port), new Threads("1"), HOST, Map.of(), Duration.ofMillis(300)))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 0 of 2 at 127.0.0.1:" + port + " (test) was not there within");
  }

  @Test
  void strangersAtTheDoorDoNotCount() throws Exception {
    List<Object> got =
        all(
            2,
            (rank, port) -> {
              if (rank == 1) {
                knock(port);
              }
              return join(rank, 2, port, Map.of());
            });
    assertThat(got).allSatisfy(g -> assertThat(g).isInstanceOf(Communicator.class));
  }

  private static void knock(int port) {
    for (int attempt = 0; attempt < 200; attempt++) {
      try (Socket s = new Socket(InetAddress.getLoopbackAddress(), port)) {
        s.getOutputStream().write("GET / HTTP/1.1\r\n\r\n".getBytes());
        return;
      } catch (IOException e) {
        try {
          Thread.sleep(20);
        } catch (InterruptedException again) {
          Thread.currentThread().interrupt();
        }
      }
    }
    throw new IllegalStateException("rank 0 never listened");
  }

  @Test
  void somethingElseAtThePortIsSaid() throws Exception {
    try (ServerSocket other = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      assertThatThrownBy(() -> join(0, 2, other.getLocalPort(), Map.of()))
          .isInstanceOf(CommException.class)
          .hasMessageContaining("rank 0 cannot listen on port " + other.getLocalPort())
          .hasMessageContaining("MASTER_PORT");
      Thread.ofPlatform()
          .daemon()
          .start(() -> {
            try (Socket s = other.accept()) {
              s.getOutputStream().write("HTTP/1.1 400 Bad Request\r\n\r\n".getBytes());
            } catch (IOException e) {
              // the test has ended
            }
          });
      assertThatThrownBy(() -> join(1, 2, other.getLocalPort(), Map.of()))
          .isInstanceOf(CommException.class)
          .hasMessageContaining("something else that listens there");
    }
  }

  @Test
  void layersLeaveOutWhatIsOfARank() {
    MoeConfig config = MoeConfig.builder(8, 4, 6, 2).build();
    Map<String, String> first =
        Rendezvous.layers(
            Map.of(3, config.toBuilder().parallel(ParallelConfig.expert(2, 0)).build()));
    Map<String, String> second =
        Rendezvous.layers(
            Map.of(
                3,
                config.toBuilder()
                    .expertMap(ExpertMap.of(-1, -1, -1, 0, 1, 2).forRank(2, 1))
                    .build()));
    assertThat(first).isEqualTo(second).containsOnlyKeys("layer 3");
    assertThat(first)
        .isNotEqualTo(
            Rendezvous.layers(
                Map.of(
                    3,
                    config.toBuilder()
                        .parallel(ParallelConfig.expert(2, 0))
                        .maxTokens(1)
                        .build())));
  }

  @Test
  void theProviderOfTheDeviceIsTaken() {
    Threads right = new Threads("1");
    CommProvider elsewhere =
        new Threads("1") {
          @Override
          public String name() {
            return "nccl";
          }

          @Override
          public DeviceType deviceType() {
            return DeviceType.CUDA;
          }
        };
    Platform platform = Platform.of(HOST.info());
    assertThat(Rendezvous.choose(List.of(elsewhere, right), HOST, platform)).isSameAs(right);
    assertThatThrownBy(() -> Rendezvous.choose(List.of(elsewhere, new Threads("")), HOST, platform))
        .hasMessageContaining(
            "nothing connects ranks on cpu:0 (nccl: carries memory of cuda | threads: no version)");
    assertThatThrownBy(() -> Rendezvous.choose(List.of(), HOST, platform))
        .hasMessageContaining("add the jar comm-tcp");
  }
}
