package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.comm.CommException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.tck.GpuTest;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** A rank that fails, stays away, is late or interrupted while rows travel from card to card. */
@GpuTest
@Timeout(60)
class PeerFailuresGpuTest {
  private static final int RANKS = PeerRanks.RANKS;
  private static final int TOKENS = 300;
  private static final int WIDTH = 2048;
  private static final int TOP_K = 4;
  private static final Duration PATIENT = Duration.ofSeconds(30);
  private static final Duration SHORT = Duration.ofSeconds(1);

  /** What rank 1 does not come to; the other waits for it there, on its card or for NCCL. */
  enum Until {
    /** No memory is shared yet. */
    FIRST_GATHER,
    FIRST_SUM,
    SECOND_GATHER,
    SECOND_SUM,
    /** Of a room that is larger. */
    LARGER_GATHER
  }

  /** One rank's tensors and steps. */
  private static final class Rank implements AutoCloseable {
    private final List<Device.Buffer> buffers = new ArrayList<>();
    private final CudaDevice device;
    private final NcclCommunicator mine;
    private final Direct direct;
    private final ExchangeInputs inputs;
    private final Tensor hidden;
    private final Tensor partial;
    private final Tensor out;
    private final int tokens;

    Rank(NcclCommunicator mine, CudaDevice device, int tokens) {
      this.device = device;
      this.mine = mine;
      this.tokens = tokens;
      MoeConfig config =
          MoeConfig.builder(WIDTH, 8, 8, TOP_K)
              .inputDtype(DType.BF16)
              .parallel(ParallelConfig.expert(RANKS, mine.rank()))
              .maxTokens(tokens)
              .build();
      Direct made = Direct.of(mine, device, config, false);
      assertThat(made).isNotNull();
      direct = made;
      hidden = room(DType.BF16, tokens, WIDTH);
      Tensor ids = room(DType.I32, tokens, TOP_K);
      inputs =
          new ExchangeInputs(
              hidden, new ExpertRouting(ids, room(DType.F32, tokens, TOP_K), null), null, tokens);
      partial = room(DType.BF16, (long) RANKS * tokens, WIDTH);
      out = room(DType.BF16, tokens, WIDTH);
      fill(mine.rank() + 1);
      device.defaultStream().synchronize();
    }

    private Tensor room(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      Device.Buffer buffer = device.allocate(dtype.byteSize(count));
      buffers.add(buffer);
      Tensor t = Tensor.of(dtype, buffer.memory(), shape);
      device.fill(t, 0, device.defaultStream());
      return t;
    }

    private void fill(int value) {
      Tensor row = host((long) RANKS * tokens);
      for (long t = 0; t < row.size(0); t++) {
        for (long c = 0; c < WIDTH; c++) {
          row.set(value, t, c);
        }
      }
      device.copy(row, partial, device.defaultStream());
    }

    private static Tensor host(long rows) {
      return Tensor.of(
          DType.BF16,
          java.lang.foreign.MemorySegment.ofArray(
              new byte[(int) DType.BF16.byteSize(rows * WIDTH)]),
          rows,
          WIDTH);
    }

    void gather() {
      ExchangeKernels.Rows rows = direct.gather(inputs, hidden, DType.BF16, device.defaultStream());
      assertThat(rows).as(mine.description()).isNotNull();
    }

    void sum() {
      direct.sum(partial, out, out.memory(), tokens, device.defaultStream());
    }

    /** {@return what the sums are, all alike: 1 and 2 of the two ranks} */
    double read() {
      Tensor host = host(tokens);
      device.copy(out, host, device.defaultStream());
      device.defaultStream().synchronize();
      double first = host.get(0, 0);
      for (long t = 0; t < tokens; t++) {
        assertThat(host.get(t, t % WIDTH)).isEqualTo(first);
      }
      return first;
    }

    @Override
    public void close() {
      buffers.forEach(Device.Buffer::close);
    }
  }

  private static double steps(NcclCommunicator mine, CudaDevice device, Until until, Runnable other)
      throws Exception {
    return steps(mine, device, until, other, () -> {});
  }

  /** Every step of a rank, in order; rank 1 does something else before and after one of them. */
  private static double steps(
      NcclCommunicator mine, CudaDevice device, Until until, Runnable before, Runnable after)
      throws Exception {
    try (Rank small = new Rank(mine, device, TOKENS);
        Rank large = new Rank(mine, device, 8 * TOKENS)) {
      Runnable[] all = {small::gather, small::sum, small::gather, small::sum, large::gather};
      for (Until step : Until.values()) {
        boolean other = step == until && mine.rank() == 1;
        if (other) {
          before.run();
        }
        all[step.ordinal()].run();
        if (other) {
          after.run();
        }
        if (step == Until.FIRST_SUM) {
          assertThat(small.read()).isEqualTo(3);
        }
      }
      large.sum();
      return large.read();
    }
  }

  @ParameterizedTest
  @EnumSource
  void aRankThatFailsIsNamedWithItsCause(Until until) throws Exception {
    List<Object> answers =
        PeerRanks.run(
            PATIENT,
            (mine, device) ->
                steps(
                    mine,
                    device,
                    until,
                    () -> mine.abort(new IllegalStateException("disk on fire"))));
    assertThat(answers)
        .allSatisfy(a ->
            assertThat(a)
                .isInstanceOf(CommException.class)
                .asString()
                .contains("rank 1 of 2 aborted: java.lang.IllegalStateException: disk on fire"));
  }

  /** The other's kernels wait on its card until the deadline; then its stream goes on. */
  @ParameterizedTest
  @EnumSource
  void aRankThatStaysAwayIsNamedAndMemoryComesBack(Until until) throws Exception {
    try (CudaDevice watched = new CudaDeviceProvider().open(0)) {
      long before = watched.allocatedBytes();
      CountDownLatch over = new CountDownLatch(1);
      List<Object> answers =
          PeerRanks.run(
              SHORT,
              (mine, device) -> {
                if (mine.rank() == 1) {
                  return steps(mine, device, until, () -> await(over));
                }
                try {
                  return steps(mine, device, until, () -> {});
                } finally {
                  over.countDown();
                }
              });
      assertThat(answers.getFirst())
          .isInstanceOf(CommException.class)
          .asString()
          .contains("rank 1 of 2 did not come to call")
          .contains("within PT1S");
      assertThat(answers.getLast()).isInstanceOf(CommException.class);
      assertThat(watched.allocatedBytes()).isEqualTo(before);
    }
  }

  private static void await(CountDownLatch latch) {
    try {
      latch.await();
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  @ParameterizedTest
  @EnumSource
  void aRankThatIsLateIsWaitedFor(Until until) throws Exception {
    List<Object> answers =
        PeerRanks.run(PATIENT, (mine, device) -> steps(mine, device, until, () -> pause(300)));
    assertThat(answers).containsExactly(3.0, 3.0);
  }

  private static void pause(long millis) {
    try {
      Thread.sleep(millis);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Only a larger room is waited for; then the group ends, as the others have come for it. */
  @ParameterizedTest
  @EnumSource
  void anInterruptedThreadEndsItsForwardOrTheGroup(Until until) throws Exception {
    AtomicBoolean kept = new AtomicBoolean();
    List<Object> answers =
        PeerRanks.run(
            PATIENT,
            (mine, device) ->
                steps(
                    mine,
                    device,
                    until,
                    () -> Thread.currentThread().interrupt(),
                    () -> kept.set(Thread.interrupted())));
    if (until == Until.FIRST_GATHER || until == Until.LARGER_GATHER) {
      assertThat(answers)
          .allSatisfy(a ->
              assertThat(a)
                  .isInstanceOf(CommException.class)
                  .asString()
                  .contains("rank 1 of 2 was interrupted"));
    } else {
      assertThat(answers).containsExactly(3.0, 3.0);
      assertThat(kept).isTrue();
    }
  }

  /** A second forward of a rank waits for the first one's sum; interrupted there, it ends all. */
  @Test
  void aThreadThatIsInterruptedBeforeItsTurnEndsTheGroup() throws Exception {
    CountDownLatch over = new CountDownLatch(1);
    List<Object> answers =
        PeerRanks.run(
            PATIENT,
            (mine, device) -> {
              try (Rank one = new Rank(mine, device, TOKENS)) {
                one.gather();
                if (mine.rank() == 1) {
                  AtomicReference<Object> answer = new AtomicReference<>();
                  Thread second =
                      Thread.ofPlatform()
                          .start(() -> {
                            try {
                              one.gather();
                            } catch (CommException e) {
                              answer.set(e);
                            }
                          });
                  while (second.getState() != Thread.State.TIMED_WAITING) {
                    Thread.onSpinWait();
                  }
                  second.interrupt();
                  second.join();
                  over.countDown();
                  assertThat(answer.get()).asString().contains("rank 1 was interrupted");
                } else {
                  over.await();
                }
                one.sum();
                return one.read();
              }
            });
    assertThat(answers)
        .allSatisfy(a ->
            assertThat(a)
                .isInstanceOf(CommException.class)
                .asString()
                .contains("rank 1 was interrupted"));
  }
}
