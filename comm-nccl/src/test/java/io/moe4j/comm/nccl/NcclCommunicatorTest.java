package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.catchThrowableOfType;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.device.Device;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.net.Socket;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** What goes wrong, over the stand-in. */
@Timeout(60)
class NcclCommunicatorTest {
  private static final Duration PATIENT = Duration.ofSeconds(20);
  private static final Duration SHORT = Duration.ofMillis(300);

  private final List<HostGroup.Rank> ranks = new ArrayList<>();
  private long liveBefore;

  @BeforeEach
  void count() {
    Standin.provider().version(); // loads it
    liveBefore = Standin.ask("live");
  }

  @AfterEach
  void leaveNothingBehind() throws Exception {
    Standin.set("stuck", 0);
    Standin.set("hang", 0);
    Standin.set("same_gpu", 0);
    all(r -> {
      r.communicator().close();
      return null;
    });
    assertThat(Standin.ask("live")).as("communicators of NCCL").isEqualTo(liveBefore);
    for (HostGroup.Rank r : ranks) {
      assertThat(r.card().marks.get()).as("events").isZero();
      assertThat(r.card().guards).isEmpty();
      assertThat(r.card().taken()).as("bytes").isZero();
    }
  }

  private void open(int size, Duration deadline) {
    ranks.addAll(HostGroup.open(size, deadline));
  }

  private interface Each {
    @Nullable Object on(HostGroup.Rank rank) throws Exception;
  }

  /** Every rank on a thread of its own; what each answered or threw. */
  private List<Object> all(Each work) throws Exception {
    List<Future<Object>> running = new ArrayList<>();
    List<Object> answers = new ArrayList<>();
    try (ExecutorService threads = Executors.newCachedThreadPool()) {
      for (HostGroup.Rank r : ranks) {
        Callable<Object> call =
            () -> {
              try {
                Object answer = work.on(r);
                return answer == null ? "done" : answer;
              } catch (CommException e) {
                return e;
              }
            };
        running.add(threads.submit(call));
      }
      for (Future<Object> f : running) {
        answers.add(f.get());
      }
    }
    return answers;
  }

  private static Object gather(HostGroup.Rank r) {
    return gather(r, 1);
  }

  private static Object gather(HostGroup.Rank r, int rows) {
    HostCard card = r.card();
    int size = r.communicator().size();
    try (Device.Buffer from = card.allocate(4L * rows);
        Device.Buffer to = card.allocate(4L * rows * size)) {
      Tensor send = Tensor.of(DType.F32, from.memory(), rows);
      HostCard.onHost(send).set(10 + r.communicator().rank(), 0);
      Tensor receive = Tensor.of(DType.F32, to.memory(), (long) rows * size);
      r.communicator().allGather(send, receive, card.defaultStream());
      card.defaultStream().synchronize();
      return HostCard.onHost(receive).toFloats();
    }
  }

  @Test
  void ranksOfOneHostOnOneGpuAreToldWhatToDo() {
    Standin.set("same_gpu", 1);
    assertThatThrownBy(() -> HostGroup.open(2, PATIENT))
        .cause()
        .isInstanceOf(CommException.class)
        .hasMessageContaining("Duplicate GPU detected : rank 0 and rank 1")
        .hasMessageContaining("give each process a GPU of its own, by CUDA_VISIBLE_DEVICES");
  }

  @Test
  void wordsOfNcclEndTheGroupOnEveryRank() throws Exception {
    open(2, PATIENT);
    Standin.set("fail_next", 2);
    List<Object> answers = all(NcclCommunicatorTest::gather);
    assertThat(answers).allSatisfy(a -> assertThat(a).isInstanceOf(CommException.class));
    assertThat(answers.getFirst().toString())
        .contains("allGather F32[1]: NCCL error 2, unhandled system error (as the test wished)");
    assertThat(answers.getLast().toString()).contains("as the test wished");
  }

  @Test
  void anErrorThatComesLaterIsNoticed() throws Exception {
    open(2, PATIENT);
    Standin.set("stuck", 1);
    Standin.set("async_error", 6);
    List<Object> answers = all(NcclCommunicatorTest::gather);
    assertThat(answers)
        .allSatisfy(a ->
            assertThat(a)
                .isInstanceOf(CommException.class)
                .asString()
                .contains("NCCL error 6, remote process exited"));
  }

  /** As it is on a card: the call returns, and the stream waits for ever. */
  @Test
  void aCallThatNeverEndsIsAbortedAndTheStreamGoesOn() throws Exception {
    open(3, SHORT);
    long aborts = Standin.ask("aborts");
    Standin.set("stuck", 1);
    List<Object> answers = all(r -> r.communicator().rank() == 2 ? "absent" : gather(r));
    assertThat(answers.subList(0, 2))
        .allSatisfy(a -> {
          assertThat(a)
              .isInstanceOf(CommException.class)
              .asString()
              .contains("rank 2 of 3 did not come to call 1 (allGather F32[1]) within PT0.3S");
          assertThat(((CommException) a).rank()).isEqualTo(2);
        });
    assertThat(catchThrowableOfType(CommException.class, () -> gather(ranks.get(2))))
        .hasMessageContaining("rank 2 of 3 did not come");
    all(r -> {
      r.communicator().close();
      return null;
    });
    assertThat(Standin.ask("aborts") - aborts).isEqualTo(3);
  }

  @Test
  void ranksThatMakeDifferentCallsAreCompared() throws Exception {
    open(2, SHORT);
    List<Object> answers = all(r -> gather(r, 1 + r.communicator().rank()));
    assertThat(answers)
        .allSatisfy(a ->
            assertThat(a)
                .asString()
                .contains("ranks make different calls: call 1")
                .contains("F32[1]")
                .contains("F32[2]"));
  }

  @Test
  void aCallThatAllHaveMadeAndThatDoesNotEnd() throws Exception {
    open(2, SHORT);
    Standin.set("hang", 1);
    assertThat(all(NcclCommunicatorTest::gather))
        .allSatisfy(a ->
            assertThat(a)
                .asString()
                .contains("has not finished within PT0.3S, though every rank has made it"));
  }

  @Test
  void aRankThatLeavesTooEarlyIsNamed() throws Exception {
    open(2, SHORT);
    ranks.get(1).communicator().close();
    assertThatThrownBy(() -> gather(ranks.getFirst()))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 1 of 2 has left the group");
  }

  /** A process that dies closes its connection, whatever it was doing. */
  @Test
  void aProcessThatDiesIsNamedAtOnce() throws Exception {
    NcclCommProvider provider = Standin.provider();
    String group = provider.newGroup();
    GroupName name = GroupName.parse(group);
    HostCard card = new HostCard(0);
    try (ExecutorService threads = Executors.newSingleThreadExecutor()) {
      Future<NcclCommunicator> opening =
          threads.submit(() -> provider.openOn(card, new CommConfig(group, 0, 2, PATIENT)));
      try (Socket dying = new Socket(name.host(), name.port())) {
        ControlLink link = new ControlLink(dying);
        link.send(ControlLink.HELLO, 1, 2, name.key(), "NCCL 2.30.7");
        assertThat(link.read(5000)).matches(m -> m.kind() == ControlLink.WELCOME);
      }
      assertThatThrownBy(opening::get)
          .hasCauseInstanceOf(CommException.class)
          .hasMessageMatching(".*rank 1 of 2 at 127.0.0.1:\\d+ ended");
    }
  }

  @Test
  void ranksThatDoNotComeOrDisagreeAtTheStart() {
    NcclCommProvider provider = Standin.provider();
    String group = provider.newGroup();
    assertThatThrownBy(() -> provider.openOn(new HostCard(0), new CommConfig(group, 0, 3, SHORT)))
        .isInstanceOf(CommException.class)
        .hasMessage("rank 1 of 3 did not come within PT0.3S");
    assertThatThrownBy(() -> provider.openOn(new HostCard(1), new CommConfig(group, 1, 3, SHORT)))
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 0 of 3 at 127.0.0.1:")
        .hasMessageContaining("did not come within PT0.3S");
    assertThatThrownBy(() -> provider.openOn(new HostCard(0), CommConfig.of("tcp", 0, 1)))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageStartingWith("group is \"tcp\", must be what newGroup gave");
  }

  @Test
  void anotherVersionIsRefusedOnBothSides() throws Exception {
    NcclCommProvider provider = Standin.provider();
    GroupName name = GroupName.parse(provider.newGroup());
    try (ExecutorService threads = Executors.newSingleThreadExecutor()) {
      Future<NcclCommunicator> opening =
          threads.submit(() ->
              provider.openOn(new HostCard(0), new CommConfig(name.toString(), 0, 2, PATIENT)));
      try (Socket other = new Socket(name.host(), name.port())) {
        ControlLink link = new ControlLink(other);
        link.send(ControlLink.HELLO, 1, 2, name.key(), "NCCL 2.28.9");
        ControlLink.Message answer = link.read(5000);
        assertThat(answer)
            .matches(m -> m.kind() == ControlLink.FAILURE)
            .matches(m -> m.text().equals("rank 1 has NCCL 2.28.9, rank 0 has NCCL 2.30.7"));
      }
      assertThatThrownBy(opening::get).hasMessageContaining("rank 1 has NCCL 2.28.9");
    }
  }

  /** What a recording holds is counted and watched when it is launched. */
  @Test
  void recordedCallsAreWatchedAtEveryLaunch() throws Exception {
    open(2, SHORT);
    List<Object> recorded =
        all(r -> {
          r.card().capturing = true;
          gather(r);
          r.card().capturing = false;
          assertThat(r.card().marks.get()).as("no event in a recording").isZero();
          return r.card().guards.getFirst().endRecording(r.card().defaultStream());
        });
    assertThat(recorded).containsOnly(true);
    HostGroup.Rank zero = ranks.getFirst();
    assertThat(zero.card().guards.getFirst().endRecording(zero.card().defaultStream())).isFalse();
    Standin.set("stuck", 1);
    zero.card().guards.getFirst().beforeLaunch(zero.card().defaultStream());
    Standin.set("stuck 0", 1);
    zero.card().guards.getFirst().afterLaunch(zero.card().defaultStream());
    assertThatThrownBy(() -> zero.card().defaultStream().synchronize())
        .isInstanceOf(CommException.class)
        .hasMessageContaining("rank 1 of 2 did not come to call 2 (a recorded graph)");
  }

  @Test
  void severalGathersAreOneGroup() throws Exception {
    open(2, PATIENT);
    long groups = Standin.ask("groups");
    all(r -> {
      HostCard card = r.card();
      try (Device.Buffer a = card.allocate(8);
          Device.Buffer b = card.allocate(4);
          Device.Buffer allA = card.allocate(16);
          Device.Buffer allB = card.allocate(8)) {
        Tensor sendA = Tensor.of(DType.F32, a.memory(), 1, 2);
        Tensor sendB = Tensor.of(DType.I32, b.memory(), 1);
        Tensor receiveA = Tensor.of(DType.F32, allA.memory(), 2, 2);
        Tensor receiveB = Tensor.of(DType.I32, allB.memory(), 2);
        int rank = r.communicator().rank();
        HostCard.onHost(sendA).set(1.5 + rank, 0, 0);
        HostCard.onHost(sendA).set(2.5 + rank, 0, 1);
        HostCard.onHost(sendB).set(7 + rank, 0);
        r.communicator()
            .allGather(List.of(sendA, sendB), List.of(receiveA, receiveB), card.defaultStream());
        assertThat(HostCard.onHost(receiveA).reshape(4).toFloats())
            .containsExactly(1.5f, 2.5f, 2.5f, 3.5f);
        assertThat(HostCard.onHost(receiveB).toInts()).containsExactly(7, 8);
        return null;
      }
    });
    assertThat(Standin.ask("groups") - groups).isEqualTo(2);
  }

  @Test
  void tensorsElsewhereAreRefusedBeforeAnybodyWaits() throws Exception {
    open(1, PATIENT);
    HostGroup.Rank r = ranks.getFirst();
    Tensor host = Tensor.ofFloats(new float[2], 2);
    assertThatThrownBy(() -> r.communicator().allReduce(host, r.card().defaultStream()))
        .isInstanceOf(IllegalArgumentException.class)
        .hasMessageStartingWith("both is ")
        .hasMessageEndingWith("must be on cuda:0");
    HostCard other = new HostCard(3);
    try (Device.Buffer b = r.card().allocate(8)) {
      Tensor here = Tensor.of(DType.F32, b.memory(), 2);
      assertThatThrownBy(() -> r.communicator().allReduce(here, other.defaultStream()))
          .hasMessage("stream is of cuda:3, the communicator of cuda:0");
    }
    assertThat(gather(r)).isEqualTo(new float[] {10});
  }
}
