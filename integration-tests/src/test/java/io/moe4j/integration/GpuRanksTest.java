package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import io.moe4j.api.comm.CommConfig;
import io.moe4j.api.comm.CommException;
import io.moe4j.api.comm.Communicator;
import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.ParallelConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.MoeLoraContext;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.checkpoint.TensorParallel;
import io.moe4j.comm.nccl.DeviceGatherProvider;
import io.moe4j.comm.nccl.NcclCommProvider;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeSession;
import io.moe4j.tck.GpuTest;
import java.io.BufferedReader;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/**
 * What transformers and PEFT computed, by ranks on GPUs that share a layer over NCCL, each a thread
 * of this JVM: eager and recorded. A card a rank; all ranks on one card where {@value #ONE_CARD} is
 * set, which NCCL itself refuses and its stand-in of comm-nccl's tests does not.
 */
@GpuTest
@Timeout(60)
class GpuRanksTest {
  private static final String ONE_CARD = "moe4j.test.ranks.one-card";
  private static final double TOLERANCE = 1e-2;
  private static final Duration PATIENT = Duration.ofSeconds(30);
  private static final Duration SHORT = Duration.ofSeconds(1);

  private static int cards;

  @BeforeAll
  static void look() {
    cards = new CudaDeviceProvider().probe().devices().size();
  }

  private static void assumeRoomFor(int ranks) {
    assumeTrue(
        cards >= ranks || Boolean.getBoolean(ONE_CARD),
        "skipped: " + ranks + " ranks need as many cards, there are " + cards);
    NcclCommProvider nccl = new NcclCommProvider();
    String why = nccl.whyUnsupported(new Platform(List.of(), Map.of())).orElse("");
    assumeTrue(why.isEmpty(), "skipped: " + why);
  }

  private interface Work<T> {
    T on(int rank, Communicator group, CudaDevice device) throws Exception;
  }

  /** Every rank on a thread and a device of its own; what each answered or threw. */
  private static <T> List<Object> all(int size, Duration deadline, Work<T> work) throws Exception {
    assumeRoomFor(size);
    NcclCommProvider nccl = new NcclCommProvider();
    String name = nccl.newGroup();
    List<Future<Object>> running = new ArrayList<>();
    List<Object> answers = new ArrayList<>();
    try (ExecutorService threads = Executors.newCachedThreadPool()) {
      for (int r = 0; r < size; r++) {
        int rank = r;
        running.add(
            threads.submit(() -> {
              try (CudaDevice device = new CudaDeviceProvider().open(cards >= size ? rank : 0)) {
                CommConfig config = new CommConfig(name, rank, size, deadline);
                try (Communicator group = nccl.open(config, device)) {
                  try {
                    return work.on(rank, group, device);
                  } catch (CommException e) {
                    return e;
                  } catch (Throwable e) {
                    group.abort(e);
                    throw e;
                  }
                }
              }
            }));
      }
      for (Future<Object> f : running) {
        answers.add(f.get());
      }
    }
    return answers;
  }

  /** One rank's part of a model's layer, with every n-th token or all, adapters mixed. */
  static final class Part implements AutoCloseable {
    private final List<Device.Buffer> buffers = new ArrayList<>();
    private final CudaDevice device;
    private final AdapterRegistry registry;
    private final AdapterBatch batch;
    final MoeLayer layer;
    final MoeForward request;
    final Tensor output;

    Part(
        Fixture fixture,
        String backend,
        ParallelConfig rank,
        Communicator group,
        CudaDevice device) {
      this.device = device;
      int index = fixture.checkpoint.layers().getFirst();
      MoeConfig config = config(fixture, backend, rank);
      ExpertMap map = ExpertMap.linear(config.numExperts(), rank.epSize(), rank.epRank());
      MoeLayerWeights weights =
          TensorParallel.of(rank).weights(fixture.checkpoint.weights(index, map));
      layer =
          MoeLayer.builder(config, weights)
              .backend(backend)
              .device(device)
              .communicator(group)
              .build();
      assertThat(layer.selection().explain())
          .contains(
              "exchange: " + (rank.replicatedTokens() ? "device-allreduce" : "device-gather"));
      registry = fixture.registryOf(rank, device);
      List<String> adapters = fixture.order.subList(1, fixture.order.size());
      List<@Nullable String> names = new ArrayList<>(adapters);
      Tensor all = fixture.io.tensor("layers." + index + ".input");
      int tokens = Math.toIntExact(all.size(0));
      int count = 0;
      int first = first(rank);
      int step = step(rank);
      for (int t = first; t < tokens; t += step) {
        names.add(adapterOf(fixture, t));
        count++;
      }
      Tensor hidden = host(DType.BF16, count, config.hiddenSize());
      for (int t = 0; t < count; t++) {
        float[] row = all.select(0, first + (long) t * step).toFloats();
        for (int h = 0; h < row.length; h++) {
          hidden.set(row[h], t, h);
        }
      }
      Tensor in = room(DType.BF16, count, config.hiddenSize());
      device.copy(hidden, in, device.defaultStream());
      output = room(DType.F32, count, config.hiddenSize());
      batch = registry.batch(names);
      MoeLoraContext context = batch.context(index);
      Tensor mine = context.tokenLoraMapping().narrow(0, adapters.size(), count);
      request =
          MoeForward.of(in, output)
              .withLora(context.withTokenLoraMapping(mine))
              .withRankTokens(Math.ceilDiv(tokens, step));
    }

    static int first(ParallelConfig rank) {
      return rank.replicatedTokens() ? 0 : rank.rank();
    }

    static int step(ParallelConfig rank) {
      return rank.replicatedTokens() ? 1 : rank.worldSize();
    }

    static MoeConfig config(Fixture fixture, String backend, ParallelConfig rank) {
      return TensorParallel.config(fixture.config(fixture.checkpoint.layers().getFirst()), rank)
          .toBuilder()
          .inputDtype(DType.BF16)
          .weightDtype(DType.BF16)
          .activationFormat(
              backend.startsWith("batched-") ? ActivationFormat.BATCHED : ActivationFormat.STANDARD)
          .build();
    }

    private Tensor room(DType dtype, long... shape) {
      long n = Arrays.stream(shape).reduce(1, Math::multiplyExact);
      Device.Buffer buffer = device.allocate(dtype.byteSize(n));
      buffers.add(buffer);
      return Tensor.of(dtype, buffer.memory(), shape);
    }

    private static Tensor host(DType dtype, long... shape) {
      long n = Arrays.stream(shape).reduce(1, Math::multiplyExact);
      byte[] bytes = new byte[Math.toIntExact(dtype.byteSize(n))];
      return Tensor.of(dtype, MemorySegment.ofArray(bytes), shape);
    }

    float[] read() {
      Tensor host = host(DType.F32, output.shape());
      device.copy(output, host, device.defaultStream());
      device.defaultStream().synchronize();
      return host.toFloats();
    }

    @Override
    public void close() {
      try {
        batch.close();
        registry.close();
        layer.close();
      } finally {
        buffers.forEach(Device.Buffer::close);
      }
    }
  }

  private static @Nullable String adapterOf(Fixture fixture, int token) {
    String name = fixture.order.get(token % fixture.order.size());
    return name.equals("base") ? null : name;
  }

  @ParameterizedTest
  @CsvSource({
    "fixtures/qwen3_moe, triton, 2, 1",
    "fixtures/qwen3_moe, triton, 1, 2",
    "fixtures/qwen3_moe, batched-triton, 2, 1",
    "fixtures/mixtral, triton, 4, 1",
    "fixtures/deepseek_v3, triton, 2, 1",
    "fixtures/deepseek_v3, triton, 2, 2",
    "fixtures/gpt_oss, triton, 2, 1",
    "fixtures/gpt_oss, triton, 1, 2",
    "quantised/ct_w4a16_asym_g32, marlin, 2, 1",
    "quantised/ct_w4a16_asym_g32, batched-marlin, 2, 1",
    "quantised/ct_w4a16_asym_g32, marlin, 1, 2",
    "quantised/ct_w8a16_g32, marlin, 2, 2",
    "quantised/ct_fp8_channel_dynamic, marlin, 1, 2",
  })
  void ranksGiveTheRecordedOutputs(String model, String backend, int ep, int tp) throws Exception {
    check(model, backend, ep, tp, false);
  }

  /** All ranks bring all tokens: the recorded results on each, with the same bits. */
  @ParameterizedTest
  @CsvSource({
    "fixtures/qwen3_moe, triton, 2, 1",
    "fixtures/qwen3_moe, triton, 1, 2",
    "fixtures/qwen3_moe, batched-triton, 2, 1",
    "fixtures/qwen3_moe, batched-triton, 1, 2",
    "fixtures/mixtral, triton, 1, 2",
    "fixtures/deepseek_v3, triton, 2, 1",
    "fixtures/deepseek_v3, triton, 1, 2",
    "fixtures/deepseek_v3, triton, 2, 2",
    "fixtures/gpt_oss, triton, 2, 1",
    "fixtures/gpt_oss, triton, 1, 2",
    "quantised/ct_w4a16_asym_g32, marlin, 2, 1",
    "quantised/ct_w4a16_asym_g32, marlin, 1, 2",
    "quantised/ct_w4a16_asym_g32, batched-marlin, 1, 2",
    "quantised/ct_w8a16_g32, marlin, 2, 2",
    "quantised/ct_fp8_channel_dynamic, marlin, 1, 2",
  })
  void ranksThatHaveAllTokensGiveTheRecordedOutputs(String model, String backend, int ep, int tp)
      throws Exception {
    List<float[]> ranks = check(model, backend, ep, tp, true);
    for (int r = 1; r < ranks.size(); r++) {
      assertThat(ranks.get(r)).as("rank %d", r).isEqualTo(ranks.getFirst());
    }
  }

  private static List<float[]> check(
      String model, String backend, int ep, int tp, boolean replicated) throws Exception {
    int size = ep * tp;
    try (Fixture fixture = Fixture.open(model)) {
      List<Object> answers = outputs(fixture, backend, ep, tp, replicated);
      int index = fixture.checkpoint.layers().getFirst();
      LayerCheck check =
          new LayerCheck(
              fixture,
              index,
              backend + ", ep " + ep + ", tp " + tp + (replicated ? ", replicated tokens" : ""),
              DType.BF16,
              TOLERANCE,
              0,
              null);
      List<float[]> ranks = new ArrayList<>();
      for (int r = 0; r < size; r++) {
        assertThat(answers.get(r)).isInstanceOf(float[].class);
        float[] got = (float[]) answers.get(r);
        double[] wide = new double[got.length];
        Arrays.setAll(wide, i -> got[i]);
        ParallelConfig rank = new ParallelConfig(tp, r % tp, ep, r / tp, replicated);
        check.close("tokens of rank " + r, wide, golden(fixture, check, rank, got.length));
        ranks.add(got);
      }
      return ranks;
    }
  }

  private static List<Object> outputs(
      Fixture fixture, String backend, int ep, int tp, boolean replicated) throws Exception {
    return all(
        ep * tp,
        PATIENT,
        (r, group, device) -> {
          ParallelConfig rank = new ParallelConfig(tp, r % tp, ep, r / tp, replicated);
          try (Part part = new Part(fixture, backend, rank, group, device)) {
            part.layer.forward(part.request);
            float[] eager = part.read();
            assertRecorded(part, device, eager);
            return eager;
          }
        });
  }

  /** Rows of experts that the exchange adds, instead of a kernel before it. */
  @ParameterizedTest
  @CsvSource({
    "fixtures/qwen3_moe, triton, 2, 1, false",
    "fixtures/qwen3_moe, triton, 2, 1, true",
    "fixtures/mixtral, triton, 4, 1, false",
    "fixtures/mixtral, triton, 1, 2, true",
    "fixtures/deepseek_v3, triton, 2, 2, false",
    "fixtures/deepseek_v3, triton, 2, 2, true",
    "fixtures/gpt_oss, triton, 1, 2, false",
    "fixtures/gpt_oss, triton, 1, 2, true",
    "quantised/ct_w4a16_asym_g32, marlin, 2, 1, false",
    "quantised/ct_w4a16_asym_g32, marlin, 2, 1, true",
    "quantised/ct_fp8_channel_dynamic, marlin, 1, 2, false",
    "quantised/ct_fp8_channel_dynamic, marlin, 1, 2, true",
  })
  void sumsThatTheExchangeMakesHaveTheSameBits(
      String model, String backend, int ep, int tp, boolean replicated) throws Exception {
    try (Fixture fixture = Fixture.open(model)) {
      List<Object> made = outputs(fixture, backend, ep, tp, replicated);
      System.setProperty(DeviceGatherProvider.ADDS_PROPERTY, "off");
      try {
        List<Object> brought = outputs(fixture, backend, ep, tp, replicated);
        for (int r = 0; r < ep * tp; r++) {
          assertThat(made.get(r)).isInstanceOf(float[].class).isEqualTo(brought.get(r));
        }
      } finally {
        System.clearProperty(DeviceGatherProvider.ADDS_PROPERTY);
      }
    }
  }

  /** Recorded, and replayed twice: the bits of a session's eager forward. */
  private static void assertRecorded(Part part, CudaDevice device, float[] eager) {
    try (MoeSession session = part.layer.newSession(part.layer.config().maxTokens())) {
      session.forward(part.request, device.defaultStream());
      assertThat(part.read()).isEqualTo(eager);
      try (Device.Graph graph =
          device
              .capture(
                  device.defaultStream(),
                  () -> session.forward(part.request, device.defaultStream()))
              .orElseThrow()) {
        for (int n = 0; n < 2; n++) {
          device.fill(part.output, 0xff, device.defaultStream());
          graph.launch(device.defaultStream());
          assertThat(part.read()).as("replay %d", n).isEqualTo(eager);
        }
      }
    }
  }

  private static double[] golden(
      Fixture fixture, LayerCheck check, ParallelConfig rank, int length) {
    double[] golden = new double[length];
    for (int at = 0, token = Part.first(rank); at < length; token += Part.step(rank)) {
      String name = adapterOf(fixture, token);
      double[] row =
          check.golden("output." + (name == null ? "base" : name)).select(0, token).toDoubles();
      System.arraycopy(row, 0, golden, at, row.length);
      at += row.length;
    }
    return golden;
  }

  /** The others' forward ends with who and why; what they took of the device is given back. */
  @Test
  void aRankThatFailsEndsTheOthersForward() throws Exception {
    try (Fixture fixture = Fixture.open("fixtures/qwen3_moe")) {
      List<Object> answers =
          all(
              2,
              PATIENT,
              (r, group, device) -> {
                try (Part part =
                    new Part(fixture, "triton", ParallelConfig.expert(2, r), group, device)) {
                  part.layer.forward(part.request);
                  part.read();
                  if (r == 1) {
                    group.abort(new IllegalStateException("disk on fire"));
                    return "failed";
                  }
                  part.layer.forward(part.request);
                  return part.read();
                }
              });
      assertThat(answers.getFirst())
          .isInstanceOf(CommException.class)
          .asString()
          .contains("rank 1 of 2 aborted: java.lang.IllegalStateException: disk on fire");
    }
  }

  /** Kernels wait on the card for a rank that never launches its graph. */
  @Test
  void aRankThatDoesNotLaunchItsGraphIsNamedAndTheStreamGoesOn() throws Exception {
    try (CudaDevice watched = new CudaDeviceProvider().open(0);
        Fixture fixture = Fixture.open("fixtures/qwen3_moe")) {
      long before = watched.allocatedBytes();
      List<Object> answers =
          all(
              2,
              SHORT,
              (r, group, device) -> {
                try (Part part =
                        new Part(fixture, "triton", ParallelConfig.expert(2, r), group, device);
                    MoeSession session = part.layer.newSession(16)) {
                  session.forward(part.request, device.defaultStream());
                  part.read();
                  try (Device.Graph graph =
                      device
                          .capture(
                              device.defaultStream(),
                              () -> session.forward(part.request, device.defaultStream()))
                          .orElseThrow()) {
                    if (r == 0) {
                      graph.launch(device.defaultStream());
                      return part.read();
                    }
                    Thread.sleep(2 * SHORT.toMillis());
                    return "absent";
                  }
                }
              });
      assertThat(answers.getFirst())
          .isInstanceOf(CommException.class)
          .asString()
          .contains("rank 1 of 2 did not come to call")
          .contains("(a recorded graph) within PT1S");
      assertThat(watched.allocatedBytes()).isEqualTo(before);
    }
  }

  /** Processes as a launcher starts them; one is killed while both compute. */
  @Test
  void aProcessThatIsKilledEndsTheOthersForward() throws Exception {
    assumeRoomFor(2);
    assumeTrue(cards >= 2, "skipped: ranks on one card are threads of one process");
    List<Process> ranks = new ArrayList<>();
    try {
      int port = ProcessesTest.freePort();
      for (int r = 0; r < 2; r++) {
        ranks.add(ProcessesTest.start(GpuRankMain.class, r, 2, port));
      }
      BufferedReader first = ranks.getFirst().inputReader();
      BufferedReader last = ranks.getLast().inputReader();
      lineThatStartsWith("forward", first);
      lineThatStartsWith("forward", last);
      ranks.getLast().destroyForcibly();
      assertThat(lineThatStartsWith("failed", first))
          .startsWith("failed 1 rank 1 of 2 at 127.0.0.1:")
          .contains("ended");
      assertThat(ranks.getFirst().waitFor(30, TimeUnit.SECONDS)).isTrue();
      assertThat(ranks.getFirst().exitValue()).isZero();
    } finally {
      ranks.forEach(Process::destroyForcibly);
    }
  }

  private static String lineThatStartsWith(String start, BufferedReader from) throws IOException {
    List<String> before = new ArrayList<>();
    for (String line = from.readLine(); line != null; line = from.readLine()) {
      if (line.startsWith(start)) {
        return line;
      }
      before.add(line);
    }
    throw new AssertionError("no line that starts with " + start + ": " + before);
  }
}
