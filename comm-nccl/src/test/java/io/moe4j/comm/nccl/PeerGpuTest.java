package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ops.PeerLink;
import io.moe4j.tck.GpuTest;
import java.lang.foreign.MemorySegment;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Rows that two cards write into each other's memory: where they land, and their sums. */
@GpuTest
@Timeout(60)
class PeerGpuTest {
  private static final int RANKS = PeerRanks.RANKS;
  private static final int TOP_K = 3;

  /** What a rank of a case gives, the same wherever it is computed. */
  private record Given(
      float[] hidden, int[] ids, float[] weights, int[] slots, float[] partial, int[] rowOf) {
    static Given of(int rank, int tokens, int n, int width) {
      SplittableRandom random = new SplittableRandom(17L * rank + tokens);
      float[] hidden = numbers(random, tokens * width);
      int[] ids = random.ints((long) tokens * TOP_K, -1, 8).toArray();
      float[] weights = numbers(random, tokens * TOP_K);
      int[] slots = random.ints(tokens, -1, 4).toArray();
      float[] partial = numbers(random, RANKS * n * width);
      // Which row of the partial sums, taken for rows of experts, a pair has; a third has none.
      int[] rowOf =
          random.ints((long) RANKS * n * TOP_K, -n, RANKS * n).map(i -> Math.max(i, -1)).toArray();
      return new Given(hidden, ids, weights, slots, partial, rowOf);
    }

    /** Of eight bits, so that BF16 holds them. */
    private static float[] numbers(SplittableRandom random, int count) {
      float[] all = new float[count];
      for (int i = 0; i < count; i++) {
        all[i] = random.nextInt(-127, 128) / 32f;
      }
      return all;
    }
  }

  @ParameterizedTest(name = "{0} tokens and {1} of width {2}, hidden {3}, sums {4} to {5}")
  @CsvSource({
    "1, 1, 8, BF16, BF16, BF16",
    "0, 3, 2048, BF16, BF16, F32",
    "64, 64, 2880, BF16, BF16, BF16",
    "65, 12, 40, F32, F32, F32",
    "700, 1300, 264, BF16, BF16, BF16",
    "2100, 2099, 72, F16, F32, F32",
  })
  void rowsAndSums(int first, int second, int width, DType type, DType sums, DType to)
      throws Exception {
    int[] tokens = {first, second};
    List<Object> answers =
        PeerRanks.run(
            Duration.ofSeconds(30),
            (mine, device) -> {
              try (Rank one = new Rank(mine, device, tokens, width, type, sums, to)) {
                one.check();
              }
              return mine.rank();
            });
    assertThat(answers).containsExactly(0, 1);
  }

  /** One rank's tensors, on its card. */
  private static final class Rank implements AutoCloseable {
    private final List<Device.Buffer> buffers = new ArrayList<>();
    private final NcclCommunicator mine;
    private final CudaDevice device;
    private final int[] tokens;
    private final int n;
    private final int width;
    private final DType type;
    private final DType sums;
    private final DType to;

    Rank(
        NcclCommunicator mine,
        CudaDevice device,
        int[] tokens,
        int width,
        DType type,
        DType sums,
        DType to) {
      this.mine = mine;
      this.device = device;
      this.tokens = tokens;
      this.n = Arrays.stream(tokens).max().orElseThrow();
      this.width = width;
      this.type = type;
      this.sums = sums;
      this.to = to;
    }

    private Tensor room(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      // On the second rank from an address that vectors of 16 bytes do not reach.
      long shift = mine.rank() == 0 ? 0 : Long.BYTES;
      Device.Buffer buffer = device.allocate(dtype.byteSize(count) + 2 * Long.BYTES);
      buffers.add(buffer);
      DeviceMemory all = (DeviceMemory) buffer.memory();
      return Tensor.of(
          dtype,
          new DeviceMemory(all.device(), all.address() + shift, dtype.byteSize(count)),
          shape);
    }

    /** As a workspace has it. */
    private Tensor aligned(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      Device.Buffer buffer = device.allocate(Math.max(1, dtype.byteSize(count)));
      buffers.add(buffer);
      return Tensor.of(dtype, buffer.memory(), shape);
    }

    private Tensor put(Tensor host) {
      Tensor there = room(host.dtype(), host.shape());
      device.copy(host, there, device.defaultStream());
      return there;
    }

    private static Tensor host(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      return Tensor.of(dtype, MemorySegment.ofArray(new byte[(int) dtype.byteSize(count)]), shape);
    }

    private Tensor put(DType dtype, float[] values, long rows) {
      Tensor host = host(dtype, rows, width);
      for (int i = 0; i < values.length; i++) {
        host.set(values[i], i / width, i % width);
      }
      return put(host);
    }

    private Tensor read(Tensor t) {
      Tensor host = host(t.dtype(), t.shape());
      device.copy(t, host, device.defaultStream());
      device.defaultStream().synchronize();
      return host;
    }

    void check() {
      MoeConfig config =
          MoeConfig.builder(width, 8, 8, TOP_K)
              .inputDtype(type)
              .parallel(ParallelConfig.expert(RANKS, mine.rank()))
              .maxTokens(n)
              .build();
      Direct direct = Direct.of(mine, device, config, false);
      assertThat(direct).isNotNull();
      int count = tokens[mine.rank()];
      Given given = Given.of(mine.rank(), count, n, width);
      Tensor ids = put(Tensor.ofInts(given.ids(), count, TOP_K));
      Tensor weights = put(Tensor.ofFloats(given.weights(), count, TOP_K));
      ExchangeInputs inputs =
          new ExchangeInputs(
              put(type, given.hidden(), count),
              new ExpertRouting(ids, weights, null),
              put(Tensor.ofInts(given.slots(), count)),
              n);
      Tensor partial = aligned(sums, (long) RANKS * n, width);
      device.copy(put(sums, given.partial(), (long) RANKS * n), partial, device.defaultStream());
      Tensor out = room(to, count, width);
      Tensor spare = aligned(type, n, width);
      Tensor spareSums = aligned(DType.F32, n, width);
      List<ExchangeKernels.Rows> gathered = new ArrayList<>();
      Runnable step =
          () -> {
            ExchangeKernels.Rows rows = direct.gather(inputs, spare, sums, device.defaultStream());
            assertThat(rows).as(mine.description()).isNotNull();
            gathered.add(rows);
            direct.sum(partial, out, spareSums.memory(), n, device.defaultStream());
          };
      for (int i = 0; i < 3; i++) {
        step.run();
      }
      look(gathered.getLast(), out, false);
      assertThat(mine.description()).endsWith(" (rows direct)");
      try (Device.Graph graph = device.capture(device.defaultStream(), step).orElseThrow()) {
        for (int i = 0; i < 3; i++) {
          device.fill(out, 0xff, device.defaultStream());
          graph.launch(device.defaultStream());
          look(gathered.getLast(), out, false);
        }
      }
      if (sums == DType.BF16) {
        combines(direct, inputs, given, partial, out, spare, spareSums);
      }
    }

    /** Rows of experts whose sum over k is left to the exchange. */
    private void combines(
        Direct direct,
        ExchangeInputs inputs,
        Given given,
        Tensor rows,
        Tensor out,
        Tensor spare,
        Tensor spareSums) {
      Tensor rowOf = put(Tensor.ofInts(given.rowOf(), RANKS * n, TOP_K));
      List<ExchangeKernels.Rows> gathered = new ArrayList<>();
      PeerLink.PairRows pairs =
          new PeerLink.PairRows(
              rows.deviceAddress(), DType.BF16, width, rowOf.deviceAddress(), true);
      Runnable step =
          () -> {
            gathered.add(direct.gather(inputs, spare, sums, device.defaultStream()));
            direct.combine(pairs, inputs, out, spareSums.memory(), device.defaultStream());
          };
      step.run();
      look(gathered.getLast(), out, true);
      try (Device.Graph graph = device.capture(device.defaultStream(), step).orElseThrow()) {
        for (int i = 0; i < 3; i++) {
          device.fill(out, 0xff, device.defaultStream());
          graph.launch(device.defaultStream());
          look(gathered.getLast(), out, true);
        }
      }
    }

    /** A token's part of a rank, rounded as it travels. */
    private float part(Given[] all, int rank, int token, int column, boolean combined, Tensor one) {
      Given g = all[rank];
      int row = mine.rank() * n + token;
      float sum = 0; // of numbers of few bits: exact in f32
      if (combined) {
        for (int k = 0; k < TOP_K; k++) {
          int from = g.rowOf()[row * TOP_K + k];
          if (from >= 0) {
            sum +=
                all[mine.rank()].weights()[token * TOP_K + k] * g.partial()[from * width + column];
          }
        }
      } else {
        sum = g.partial()[row * width + column];
      }
      one.set(sum, 0);
      return (float) one.get(0);
    }

    private void look(ExchangeKernels.Rows rows, Tensor out, boolean combined) {
      Given[] all = new Given[RANKS];
      Tensor hidden = read(rows.hidden());
      Tensor ids = read(rows.ids());
      Tensor weights = read(rows.weights());
      Tensor slots = read(rows.slots());
      for (int r = 0; r < RANKS; r++) {
        all[r] = Given.of(r, tokens[r], n, width);
        for (int t = 0; t < n; t++) {
          boolean is = t < tokens[r];
          long row = (long) r * n + t;
          assertThat((int) slots.get(row)).isEqualTo(is ? all[r].slots()[t] : -1);
          for (int k = 0; k < TOP_K; k++) {
            int at = t * TOP_K + k;
            assertThat((int) ids.get(row, k)).isEqualTo(is ? all[r].ids()[at] : -1);
            if (is) {
              assertThat((float) weights.get(row, k)).isEqualTo(all[r].weights()[at]);
            }
          }
          for (int c = 0; c < width; c++) {
            float want = is ? all[r].hidden()[t * width + c] : 0;
            if ((float) hidden.get(row, c) != want) {
              assertThat((float) hidden.get(row, c)).as("row %d, %d", row, c).isEqualTo(want);
            }
          }
        }
      }
      Tensor got = read(out);
      Tensor one = host(to, 1);
      Tensor travels = host(sums, 1);
      for (int t = 0; t < tokens[mine.rank()]; t++) {
        for (int c = 0; c < width; c++) {
          float first = part(all, 0, t, c, combined, travels);
          one.set(first + part(all, 1, t, c, combined, travels), 0);
          if (got.get(t, c) != one.get(0)) {
            assertThat(got.get(t, c)).as("sum %d, %d", t, c).isEqualTo(one.get(0));
          }
        }
      }
    }

    @Override
    public void close() {
      device.defaultStream().synchronize();
      buffers.forEach(Device.Buffer::close);
    }
  }
}
