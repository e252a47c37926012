package io.moe4j.comm.tcp;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.CommProvider;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.ServiceLoader;
import java.util.concurrent.Callable;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What the kit does not ask: sizes, joining, sockets that end. */
@Timeout(value = 60, unit = TimeUnit.SECONDS)
class TcpCommunicatorTest {
  private static final Duration PATIENT = Duration.ofSeconds(30);

  private interface Work<T> {
    T on(Communicator c) throws Exception;
  }

  private static <T> List<Future<T>> onAll(List<Communicator> group, Work<T> work) {
    List<Callable<T>> ranks = new ArrayList<>();
    for (Communicator c : group) {
      ranks.add(() -> work.on(c));
    }
    return TcpGroup.together(ranks);
  }

  private static void closeAll(List<Communicator> group) {
    onAll(
            group,
            c -> {
              c.close();
              return 0;
            })
        .forEach(TcpGroup::get);
  }

  private static Tensor bytes(long... shape) {
    long n = 1;
    for (long d : shape) {
      n *= d;
    }
    return Tensor.of(DType.U8, MemorySegment.ofArray(new byte[Math.toIntExact(n)]), shape);
  }

  @Test
  void theServiceFileNamesIt() {
    assertThat(ServiceLoader.load(CommProvider.class).stream().map(p -> p.get().name()))
        .contains("tcp");
  }

  /** Many times what a socket buffers, so that everybody writes and reads at once. */
  @Test
  void largeTensorsGoBothWaysAtOnce() {
    int rows = 3 << 20;
    List<Communicator> group = TcpGroup.open(3, PATIENT);
    for (Future<byte[]> f :
        onAll(
            group,
            c -> {
              Tensor send = bytes(rows, 3);
              send.segment().fill((byte) (c.rank() + 1));
              send.segment()
                  .set(java.lang.foreign.ValueLayout.JAVA_BYTE, 5L * (c.rank() + 1), (byte) 99);
              Tensor receive = bytes(3L * rows, 3);
              c.allGather(send, receive, DeviceStream.HOST);
              return receive.segment().toArray(java.lang.foreign.ValueLayout.JAVA_BYTE);
            })) {
      byte[] got = TcpGroup.get(f);
      for (int r = 0; r < 3; r++) {
        for (int i = 0; i < rows * 3; i++) {
          int expected = i == 5 * (r + 1) ? 99 : r + 1;
          if (got[r * rows * 3 + i] != expected) {
            throw new AssertionError(
                "byte " + i + " of rank " + r + " is " + got[r * rows * 3 + i]);
          }
        }
      }
    }
    closeAll(group);
  }

  /** Calls in a row without a pause: one that is early waits in a buffer. */
  @Test
  void manyCallsInARow() {
    List<Communicator> group = TcpGroup.open(4, PATIENT);
    for (Future<float[]> f :
        onAll(
            group,
            c -> {
              Tensor both = Tensor.ofFloats(new float[] {c.rank(), 1, 2, 3, 4, 5}, 6);
              for (int n = 0; n < 300; n++) {
                c.allReduce(both, DeviceStream.HOST);
                for (int i = 0; i < 6; i++) {
                  both.set(both.get(i) / 4, i);
                }
              }
              return both.toFloats();
            })) {
      assertThat(TcpGroup.get(f)).containsExactly(1.5f, 1, 2, 3, 4, 5);
    }
    closeAll(group);
  }

  @Test
  void aGroupNamedByHand() throws Exception {
    int port;
    try (ServerSocket s = new ServerSocket(0, 1, InetAddress.getLoopbackAddress())) {
      port = s.getLocalPort();
    }
    TcpCommProvider provider = new TcpCommProvider();
    List<Callable<Communicator>> ranks = new ArrayList<>();
    for (int r = 0; r < 2; r++) {
      CommConfig config = new CommConfig("localhost:" + port, r, 2, PATIENT);
      ranks.add(() -> provider.open(config, TcpGroup.HOST));
    }
    List<Communicator> group = TcpGroup.together(ranks).stream().map(TcpGroup::get).toList();
    onAll(
            group,
            c -> {
              c.allGather(bytes(1, 1), bytes(2, 1), DeviceStream.HOST);
              return 0;
            })
        .forEach(TcpGroup::get);
    closeAll(group);
  }

  @Test
  void badNamesOfGroupsAreRefused() {
    TcpCommProvider provider = new TcpCommProvider();
    for (String bad : List.of("host", "host:0", "host:70000", "host:x", "::1:5", ":5", "x")) {
      assertThatThrownBy(() -> provider.open(CommConfig.of(bad, 0, 2), TcpGroup.HOST))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("\"" + bad + "\"")
          .hasMessageContaining("host:port");
    }
    assertThat(GroupName.parse("[::1]:5/k")).isEqualTo(new GroupName("::1", 5, "k"));
    assertThat(GroupName.parse("[::1]:5/k")).hasToString("[::1]:5/k");
    assertThatThrownBy(() -> provider.newGroup("192.0.2.1"))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 0 cannot listen on 192.0.2.1");
  }

  @Test
  void aRankThatIsNotThereIsNamedWhenJoining() {
    TcpCommProvider provider = new TcpCommProvider();
    Duration brief = Duration.ofMillis(400);
    String group = provider.newGroup();
    List<Callable<Communicator>> two =
        List.of(
            () -> provider.open(new CommConfig(group, 0, 3, brief), TcpGroup.HOST),
            () -> provider.open(new CommConfig(group, 2, 3, PATIENT), TcpGroup.HOST));
    for (Future<Communicator> f : TcpGroup.together(two)) {
      assertThatThrownBy(() -> TcpGroup.get(f))
          .isInstanceOf(CommException.class)
          .hasMessageContaining("rank 1 of 3 did not come");
    }
    assertThatThrownBy(
            () -> provider.open(new CommConfig("127.0.0.1:1", 1, 2, brief), TcpGroup.HOST))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 0 of 2 at 127.0.0.1:1 did not answer within");
  }

  @Test
  void ranksThatDisagreeAboutTheGroupAreTold() {
    TcpCommProvider provider = new TcpCommProvider();
    String group = provider.newGroup();
    List<Callable<Communicator>> two =
        List.of(
            () -> provider.open(new CommConfig(group, 0, 2, PATIENT), TcpGroup.HOST),
            () -> provider.open(new CommConfig(group, 1, 3, PATIENT), TcpGroup.HOST));
    for (Future<Communicator> f : TcpGroup.together(two)) {
      assertThatThrownBy(() -> TcpGroup.get(f))
          .isInstanceOf(CommException.class)
          .hasMessageContaining("rank 1 says that the group has 3 ranks, rank 0 says 2");
    }
  }

  /** Something that scans ports, and one that has another group's key. */
  @Test
  void strangersAreNotLetIn() throws IOException {
    TcpCommProvider provider = new TcpCommProvider();
    String group = provider.newGroup();
    GroupName name = GroupName.parse(group);
    try (Socket silent = new Socket(name.host(), name.port());
        Socket loud = new Socket(name.host(), name.port())) {
      loud.getOutputStream().write("GET / HTTP/1.1\r\nHost: x\r\n\r\n".getBytes());
      silent.shutdownOutput();
      String wrongKey = new GroupName(name.host(), name.port(), "other").toString();
      Duration brief = Duration.ofSeconds(2);
      List<Callable<Communicator>> ranks =
          List.of(
              () -> provider.open(new CommConfig(group, 0, 2, PATIENT), TcpGroup.HOST),
              () -> {
                assertThatThrownBy(
                        () -> provider.open(new CommConfig(wrongKey, 1, 2, brief), TcpGroup.HOST))
                    .isInstanceOf(CommException.class)
                    .hasMessageContaining("rank 0 of 2");
                return provider.open(new CommConfig(group, 1, 2, PATIENT), TcpGroup.HOST);
              });
      closeAll(TcpGroup.together(ranks).stream().map(TcpGroup::get).toList());
    }
  }

  /** A rank leaves while others are half way through a tensor for it. */
  @Test
  void aRankThatEndsInTheMiddleIsNamed() {
    List<Communicator> group = TcpGroup.open(3, PATIENT);
    List<Future<Integer>> ended =
        onAll(
            group,
            c -> {
              if (c.rank() == 1) {
                c.close();
                return 0;
              }
              c.allGather(bytes(20 << 20, 1), bytes(60 << 20, 1), DeviceStream.HOST);
              return 0;
            });
    for (int r : new int[] {0, 2}) {
      assertThatThrownBy(() -> TcpGroup.get(ended.get(r)))
          .isInstanceOf(CommException.class)
          .hasMessageContaining("rank 1 of 3 at ")
          .hasMessageContaining("has left the group")
          .matches(e -> ((CommException) e).rank() == 1);
    }
    closeAll(group);
  }

  /** What a thread that watches over a rank does. */
  @Test
  void abortFromAnotherThreadEndsACallThatWaits() {
    List<Communicator> group = TcpGroup.open(2, PATIENT);
    List<Future<Integer>> ended =
        onAll(
            group,
            c -> {
              if (c.rank() == 1) {
                Thread.sleep(200);
                group.get(0).abort(new IllegalStateException("no paper"));
                return 0;
              }
              c.allGather(bytes(1, 1), bytes(2, 1), DeviceStream.HOST);
              return 0;
            });
    assertThatThrownBy(() -> TcpGroup.get(ended.getFirst()))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 0 of 2 aborted: java.lang.IllegalStateException: no paper");
    assertThatThrownBy(() -> group.get(1).allGather(bytes(1, 1), bytes(2, 1), DeviceStream.HOST))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("no paper");
    closeAll(group);
    group.get(1).abort(new IllegalStateException("too late to matter"));
  }

  @Test
  void tensorsThatDoNotFitAreRefusedBeforeAnythingIsSent() {
    List<Communicator> group = TcpGroup.open(2, PATIENT);
    Communicator c = group.getFirst();
    assertThatThrownBy(() -> c.allGather(bytes(2, 3), bytes(3, 3), DeviceStream.HOST))
        .hasMessageContaining("receive is")
        .hasMessageContaining("[4, 3]");
    assertThatThrownBy(() -> c.allReduce(bytes(2, 3), DeviceStream.HOST))
        .hasMessageContaining("must be F32, BF16 or F16");
    assertThatThrownBy(() ->
            c.allToAll(bytes(2, 3), new long[] {1}, bytes(2, 3), new long[2], DeviceStream.HOST))
        .hasMessageContaining("sendRows has 1 entries");
    assertThatThrownBy(() ->
            c.allToAll(
                bytes(2, 3), new long[] {1, -1}, bytes(2, 3), new long[2], DeviceStream.HOST))
        .hasMessageContaining("sendRows[1] is -1");
    assertThatThrownBy(() ->
            c.allToAll(
                bytes(3, 3), new long[] {1, 1}, bytes(1, 3), new long[] {1, 1}, DeviceStream.HOST))
        .hasMessageContaining("2 and at least 2 of them");
    // and the group lives
    onAll(
            group,
            x -> {
              x.allGather(bytes(1, 1), bytes(2, 1), DeviceStream.HOST);
              return 0;
            })
        .forEach(TcpGroup::get);
    closeAll(group);
  }
}
