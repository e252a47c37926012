package io.moe4j.comm.nccl;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.ExchangeInputs;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.ops.PeerLink;
import io.moe4j.tck.GpuTest;
import java.lang.foreign.MemorySegment;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * Sums of tokens that every rank has, many after each other in one group: of other sizes, of parts
 * and of experts' rows, with gathers of own tokens between them. Each has numbers of its own, so
 * what a call leaves to the next is seen.
 */
@GpuTest
@Timeout(60)
class PeerReduceGpuTest {
  private static final int[] TOKENS = {3, 700, 1, 64, 65, 2100, 2, 2, 2, 513, 5};
  private static final int TOP_K = 9;

  /** Of eight bits, so that BF16 holds them; their sums are rounded. */
  private static float[] numbers(long seed, int count) {
    SplittableRandom random = new SplittableRandom(seed);
    float[] all = new float[count];
    for (int i = 0; i < count; i++) {
      all[i] = random.nextInt(-127, 128) / 32f;
    }
    return all;
  }

  @ParameterizedTest(name = "width {0}, sums {1} to {2}")
  @CsvSource({"2048, BF16, BF16", "2880, BF16, F32", "40, F32, F32", "8, BF16, BF16"})
  void partsOfAllRanks(int width, DType sums, DType to) throws Exception {
    List<Object> answers =
        PeerRanks.run(
            Duration.ofSeconds(30),
            (mine, device) -> {
              try (Calls calls = new Calls(mine, device, width, sums, to)) {
                return calls.check();
              }
            });
    assertThat(answers.get(0)).isInstanceOf(List.class).isEqualTo(answers.get(1));
  }

  /** One rank's calls. */
  private static final class Calls implements AutoCloseable {
    private final List<Device.Buffer> buffers = new ArrayList<>();
    private final NcclCommunicator mine;
    private final CudaDevice device;
    private final DeviceStream stream;
    private final int width;
    private final DType sums;
    private final DType to;
    private final DirectSums direct;
    private final Direct gathers;

    Calls(NcclCommunicator mine, CudaDevice device, int width, DType sums, DType to) {
      this.mine = mine;
      this.device = device;
      this.stream = device.defaultStream();
      this.width = width;
      this.sums = sums;
      this.to = to;
      MoeConfig config =
          MoeConfig.builder(width, 8, 8, 2)
              .inputDtype(sums)
              .parallel(ParallelConfig.expert(PeerRanks.RANKS, mine.rank()))
              .build();
      this.direct = Objects.requireNonNull(DirectSums.of(mine, device));
      this.gathers = Objects.requireNonNull(Direct.of(mine, device, config, false));
    }

    private Tensor room(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      Device.Buffer buffer = device.allocate(dtype.byteSize(count));
      buffers.add(buffer);
      return Tensor.of(dtype, buffer.memory(), shape);
    }

    private static Tensor host(DType dtype, long... shape) {
      long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
      return Tensor.of(dtype, MemorySegment.ofArray(new byte[(int) dtype.byteSize(count)]), shape);
    }

    private Tensor put(Tensor from) {
      Tensor there = room(from.dtype(), from.shape());
      device.copy(from, there, stream);
      stream.synchronize();
      return there;
    }

    private Tensor put(DType dtype, float[] values) {
      Tensor from = host(dtype, values.length / width, width);
      for (int i = 0; i < values.length; i++) {
        from.set(values[i], i / width, i % width);
      }
      return put(from);
    }

    private long seed(int call, int rank) {
      return 1000L * call + rank;
    }

    /** Each token's rows are among T, in this order; every fourth pair is another rank's. */
    private static int[] rowOf(int call, int rank, int tokens) {
      SplittableRandom random = new SplittableRandom(77L * call + rank);
      return random
          .ints((long) tokens * TOP_K, 0, 4 * tokens)
          .map(i -> i < tokens ? -1 : i % tokens)
          .toArray();
    }

    /** What a rank adds to a token, as it travels. */
    private float[] part(int call, int rank) {
      int tokens = TOKENS[call];
      float[] values = numbers(seed(call, rank), tokens * width);
      if (!isRows(call)) {
        return values;
      }
      int[] rows = rowOf(call, rank, tokens);
      float[] weights = numbers(seed(call, 7), tokens * TOP_K);
      float[] part = new float[tokens * width];
      Tensor one = host(DType.BF16, 1);
      for (int t = 0; t < tokens; t++) {
        for (int c = 0; c < width; c++) {
          float sum = 0;
          for (int k = 0; k < TOP_K; k++) {
            int row = rows[t * TOP_K + k];
            sum = row < 0 ? sum : Math.fma(weights[t * TOP_K + k], values[row * width + c], sum);
          }
          one.set(sum, 0);
          part[t * width + c] = (float) one.get(0);
        }
      }
      return part;
    }

    private boolean isRows(int call) {
      return sums == DType.BF16 && call % 2 == 1;
    }

    private Runnable sum(int call, Tensor out) {
      int tokens = TOKENS[call];
      Tensor partial = put(sums, numbers(seed(call, mine.rank()), tokens * width));
      Tensor rows = put(Tensor.ofInts(rowOf(call, mine.rank(), tokens), tokens, TOP_K));
      Tensor weights = put(Tensor.ofFloats(numbers(seed(call, 7), tokens * TOP_K), tokens, TOP_K));
      Tensor spare = room(DType.F32, tokens, width);
      return () -> {
        assertThat(direct.begin(tokens, width, sums, stream)).as(mine.description()).isTrue();
        if (isRows(call)) {
          direct.sumRows(
              new PeerLink.PairRows(
                  partial.deviceAddress(), sums, width, rows.deviceAddress(), true),
              new ExpertRouting(rows, weights, null),
              out,
              spare.memory(),
              stream);
        } else {
          direct.sum(partial, out, spare.memory(), stream);
        }
      };
    }

    /** Own tokens of each rank, whose sums nobody looks at. */
    private Runnable gather(int tokens) {
      Tensor hidden = put(sums, numbers(tokens, tokens * width));
      Tensor ids = put(Tensor.ofInts(new int[tokens * 2], tokens, 2));
      Tensor weights = put(Tensor.ofFloats(new float[tokens * 2], tokens, 2));
      Tensor partial = put(sums, numbers(5, 2 * tokens * width));
      Tensor out = room(to, tokens, width);
      Tensor spare = room(DType.F32, tokens, width);
      ExchangeInputs inputs =
          new ExchangeInputs(hidden, new ExpertRouting(ids, weights, null), null);
      return () -> {
        assertThat(gathers.gather(inputs, hidden, sums, stream)).isNotNull();
        gathers.sum(partial, out, spare.memory(), tokens, stream);
      };
    }

    /** {@return a hash of each result: the same on every rank} */
    List<Integer> check() {
      List<Tensor> outs = new ArrayList<>();
      List<Runnable> steps = new ArrayList<>();
      for (int call = 0; call < TOKENS.length; call++) {
        Tensor out = room(to, TOKENS[call], width);
        outs.add(out);
        steps.add(sum(call, out));
        if (call % 3 == 2) {
          steps.add(gather(TOKENS[call]));
        }
      }
      Runnable all = () -> steps.forEach(Runnable::run);
      all.run();
      List<Integer> first = look(outs);
      try (Device.Graph graph = device.capture(stream, all).orElseThrow()) {
        for (int i = 0; i < 3; i++) {
          outs.forEach(out -> device.fill(out, 0xff, stream));
          graph.launch(stream);
        }
        assertThat(look(outs)).isEqualTo(first);
      }
      return first;
    }

    private List<Integer> look(List<Tensor> outs) {
      List<Integer> hashes = new ArrayList<>();
      Tensor one = host(to, 1);
      for (int call = 0; call < outs.size(); call++) {
        float[] a = part(call, 0);
        float[] b = part(call, 1);
        Tensor got = host(to, TOKENS[call], width);
        device.copy(outs.get(call), got, stream);
        stream.synchronize();
        for (int i = 0; i < a.length; i++) {
          one.set(a[i] + b[i], 0);
          if (got.get(i / width, i % width) != one.get(0)) {
            assertThat(got.get(i / width, i % width))
                .as("call %d, row %d, column %d", call, i / width, i % width)
                .isEqualTo(one.get(0));
          }
        }
        hashes.add(Arrays.hashCode(got.toFloats()));
      }
      return hashes;
    }

    @Override
    public void close() {
      stream.synchronize();
      buffers.forEach(Device.Buffer::close);
    }
  }
}
