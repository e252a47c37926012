package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatIllegalStateException;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.spi.BlockOps;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.cuda.ops.CudaBlockOpsProvider;
import io.moe4j.cuda.ops.ElementwiseKernels;
import io.moe4j.cuda.ops.PairSort;
import io.moe4j.cuda.ops.TopkKernel;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;

@GpuTest
class CudaRuntimeTest {
  private static final int CYCLES = 1000;

  @Test
  void aClosedStreamIsRefusedBeforeTheDriverSeesIt() {
    try (CudaDevice device = new CudaDeviceProvider().open(0)) {
      CudaStream stream = device.newStream();
      stream.synchronize();
      stream.close();
      assertThatIllegalStateException()
          .isThrownBy(stream::synchronize)
          .withMessageContaining("closed");
      assertThatIllegalStateException().isThrownBy(stream::handle);
    }
  }

  @Test
  void closedEventsAndGraphsAreRefusedBeforeTheDriverSeesThem() {
    try (CudaDevice device = new CudaDeviceProvider().open(0)) {
      CudaStream stream = device.defaultStream();
      CudaEvent event = device.newEvent(false);
      event.close();
      assertThatIllegalStateException()
          .isThrownBy(() -> event.record(stream))
          .withMessageContaining("closed");
      assertThatIllegalStateException().isThrownBy(event::isDone);
      assertThatIllegalStateException().isThrownBy(event::synchronize);
      CudaGraph graph = CudaGraph.capture(device, stream, () -> {});
      graph.close();
      assertThatIllegalStateException()
          .isThrownBy(() -> graph.launch(stream))
          .withMessageContaining("closed");
    }
  }

  @Test
  void theDevicesClockHoldsItsWorkAndNothingOfTheHosts() {
    try (Gpu gpu = new Gpu();
        Device.Timer timer = gpu.device.newTimer().orElseThrow()) {
      Tensor a = gpu.empty(DType.F32, 1 << 24);
      Tensor b = gpu.empty(DType.F32, 1 << 24);
      gpu.device.copy(a, b, gpu.stream);
      gpu.stream.synchronize();
      for (int copies : new int[] {1, 20}) {
        long begin = System.nanoTime();
        timer.start(gpu.stream);
        for (int i = 0; i < copies; i++) {
          gpu.device.copy(a, b, gpu.stream);
        }
        timer.stop(gpu.stream);
        double inside = timer.micros();
        double outside = (System.nanoTime() - begin) / 1e3;
        // No memory copies 128 MB in 5 us.
        assertThat(inside).isBetween(5.0 * copies, outside);
      }
      Device.Timer closed = gpu.device.newTimer().orElseThrow();
      closed.close();
      assertThatIllegalStateException().isThrownBy(() -> closed.start(gpu.stream));
    }
  }

  @Test
  void whatAProfilerIsToSeeHasEndedAtItsSecondMark() {
    try (Gpu gpu = new Gpu()) {
      Tensor a = gpu.empty(DType.F32, 1 << 26);
      Tensor b = gpu.empty(DType.F32, 1 << 26);
      List<Device.Fence> behind = new ArrayList<>();
      gpu.device.profiled(
          gpu.stream,
          () -> {
            gpu.device.copy(a, b, gpu.stream);
            behind.add(gpu.device.fence(gpu.stream));
          });
      assertThat(behind).hasSize(1).allMatch(Device.Fence::isDone);
      behind.forEach(Device.Fence::close);
      assertThatIllegalStateException()
          .isThrownBy(() ->
              gpu.device.profiled(
                  gpu.stream,
                  () -> {
                    throw new IllegalStateException("of the work");
                  }))
          .withMessage("of the work");
    }
  }

  @Test
  void copiesBetweenHeapNativePinnedAndDevice() {
    int n = 5_000_001; // more than both halves of the staging memory
    float[] values = Gpu.random(new Random(1), n, 1f);
    try (Gpu gpu = new Gpu();
        PinnedBuffer pinned = gpu.device.allocatePinned(4L * n);
        Arena arena = Arena.ofConfined()) {
      Tensor heap = Tensor.ofFloats(values, n);
      Tensor a = gpu.upload(heap);
      Tensor b = gpu.empty(DType.F32, n);
      Tensor outside = Tensor.of(DType.F32, arena.allocate(4L * n, 64), n);
      gpu.device.copy(a, b, gpu.stream);
      gpu.device.copy(b, pinned.tensor(DType.F32, n), gpu.stream);
      gpu.stream.synchronize();
      gpu.device.copy(pinned.tensor(DType.F32, n), a, gpu.stream);
      gpu.device.copy(a, outside, gpu.stream);
      gpu.stream.synchronize();
      assertThat(outside.toFloats()).isEqualTo(values);
      assertThat(gpu.floats(a)).isEqualTo(values);
      assertThatThrownBy(() -> gpu.device.copy(heap, gpu.empty(DType.F32, 3), gpu.stream))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("F32[3]");
    }
  }

  @Test
  void tooMuchMemoryIsAnErrorWithNumbers() {
    try (Gpu gpu = new Gpu()) {
      assertThatThrownBy(() -> gpu.device.allocate(1L << 45))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("cuMemAlloc")
          .hasMessageContaining("CUDA_ERROR_OUT_OF_MEMORY")
          .hasMessageContaining(Long.toString(1L << 45));
      // The context has survived.
      gpu.device.allocate(1 << 20).close();
      gpu.device.allocate(1 << 20, gpu.stream).close();
    }
  }

  @Test
  void launchesAreCheckedAgainstTheSignature() {
    try (Gpu gpu = new Gpu()) {
      Kernel cast = gpu.kernel("cast", Map.of("in", "f32", "out", "f32"));
      assertThatThrownBy(() -> cast.begin().pointer(0L).i32(1))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("cast{in=f32, out=f32}")
          .hasMessageContaining("given I32");
      assertThatThrownBy(() -> cast.begin().pointer(0L).launch(gpu.stream, 1))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("takes 3 parameters, given 1");
      assertThatThrownBy(
              () -> cast.begin().pointer(0L).pointer(0L).i64(0).launch(DeviceStream.HOST, 1))
          .isInstanceOf(IllegalArgumentException.class)
          .hasMessageContaining("host stream");
      assertThatThrownBy(() ->
              cast.begin()
                  .pointer(0L)
                  .pointer(0L)
                  .i64(0)
                  .sharedBytes(1 << 30)
                  .launch(gpu.stream, 1))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("cuLaunchKernelEx")
          .hasMessageContaining("CUDA_ERROR_INVALID_VALUE")
          .hasMessageContaining("grid 1x1x1, block 256, shared memory 1073741824");
    }
  }

  @Test
  void graphReplaysWithOtherContents() {
    int tokens = 100;
    int experts = 32;
    int k = 4;
    try (Gpu gpu = new Gpu()) {
      Random random = new Random(5);
      TopkKernel topk = new TopkKernel(gpu.device, RoutingConfig.SOFTMAX_RENORMALIZE, experts, k);
      PairSort sort = new PairSort(gpu.device, 0);
      PairSort.Layout layout = PairSort.Layout.of(tokens * k, experts, 0, 16, 16);
      Tensor logits = gpu.empty(DType.F32, tokens, experts);
      Tensor ids = gpu.empty(DType.I32, tokens, k);
      Tensor weights = gpu.empty(DType.F32, tokens, k);
      Tensor memory = gpu.empty(DType.I32, layout.byteSize() / 4);
      ExpertRouting routing = new ExpertRouting(ids, weights, null);
      Runnable work =
          () -> {
            topk.run(logits, null, ids, weights, gpu.stream);
            sort.run(routing, null, null, layout, memory.deviceAddress(), gpu.stream);
          };
      try (CudaGraph graph = CudaGraph.capture(gpu.device, gpu.stream, work)) {
        for (int round = 0; round < 3; round++) {
          float[] z = Gpu.random(random, tokens * experts, 1f);
          gpu.device.copy(Tensor.ofFloats(z, tokens, experts), logits, gpu.stream);
          graph.launch(gpu.stream);
          int[] replayed = gpu.ints(memory);
          int[] replayedIds = gpu.ints(ids);
          gpu.device.fill(ids, 0xff, gpu.stream);
          work.run();
          assertThat(replayedIds).isEqualTo(gpu.ints(ids));
          int rows = (int) (layout.rowOfPair() / 4);
          assertThat(Arrays.copyOfRange(replayed, 0, rows))
              .isEqualTo(Arrays.copyOfRange(gpu.ints(memory), 0, rows));
        }
      }
      assertThatThrownBy(() -> CudaGraph.capture(gpu.device, gpu.stream, gpu.stream::synchronize))
          .isInstanceOf(DeviceException.class)
          .hasMessageContaining("CUDA_ERROR_STREAM_CAPTURE");
      // The stream works on after a capture that failed.
      work.run();
      gpu.stream.synchronize();
    }
  }

  @Test
  void streamsOfOthersEventsAndThreads() throws Exception {
    int n = 1 << 20;
    try (Gpu gpu = new Gpu();
        CudaStream own = gpu.device.newStream();
        CudaEvent done = gpu.device.newEvent(false);
        ExecutorService threads = Executors.newFixedThreadPool(4)) {
      CudaStream same = gpu.device.wrapStream(own.handle());
      assertThat(same.handle()).isEqualTo(own.handle());
      ElementwiseKernels kernels = new ElementwiseKernels(gpu.device);
      float[] values = Gpu.random(new Random(3), n, 1f);
      Tensor x = gpu.floats(DType.F32, values, n);
      Tensor y = gpu.empty(DType.F32, n);
      gpu.stream.synchronize();
      kernels.cast(x, y, same);
      done.record(own);
      gpu.stream.waitFor(done);
      assertThat(gpu.floats(y)).isEqualTo(values);
      assertThat(done.isDone()).isTrue();
      List<Tensor> outs =
          List.of(
              gpu.empty(DType.F32, n),
              gpu.empty(DType.F32, n),
              gpu.empty(DType.F32, n),
              gpu.empty(DType.F32, n));
      gpu.stream.synchronize();
      List<Future<Void>> jobs =
          threads.invokeAll(
              outs.stream()
                  .<Callable<Void>>map(out ->
                      () -> {
                        try (CudaStream s = gpu.device.newStream()) {
                          for (int i = 0; i < 50; i++) {
                            kernels.cast(x, out, s);
                          }
                          s.synchronize();
                        }
                        return null;
                      })
                  .toList());
      for (Future<Void> job : jobs) {
        job.get();
      }
      for (Tensor out : outs) {
        assertThat(gpu.floats(out)).isEqualTo(values);
      }
      same.close();
      own.synchronize(); // closing the view left the stream alone
    }
  }

  // Free memory is that of the whole card: nobody else may use it meanwhile.
  @Tag("gpu-alone")
  @Test
  void nothingIsLeftAfterAThousandCycles() {
    MoeConfig config = MoeConfig.builder(64, 32, 8, 2).maxTokens(16).build();
    Random random = new Random(7);
    ExpertWeights.Expert expert =
        ExpertWeights.Expert.plain(
            Gpu.host(DType.BF16, new float[32 * 64], 32, 64),
            Gpu.host(DType.BF16, new float[32 * 64], 32, 64),
            Gpu.host(DType.BF16, new float[32 * 64], 64, 32));
    MoeLayerWeights weights =
        new MoeLayerWeights(
            new ExpertWeights(
                List.of(expert, expert, expert, expert, expert, expert, expert, expert)),
            new RouterWeights(
                Gpu.host(DType.F32, Gpu.random(random, 8 * 64, 1f), 8, 64), null, null),
            null,
            null);
    try (CudaDevice outer = new CudaDeviceProvider().open(0)) {
      cycle(config, weights);
      long before = outer.freeBytes();
      for (int i = 0; i < CYCLES; i++) {
        cycle(config, weights);
      }
      assertThat(outer.freeBytes()).as("free bytes after %d cycles", CYCLES).isEqualTo(before);
    }
    // All closed: the primary context goes and comes back.
    for (int i = 0; i < 3; i++) {
      cycle(config, weights);
    }
  }

  private static void cycle(MoeConfig config, MoeLayerWeights weights) {
    try (CudaDevice device = new CudaDeviceProvider().open(0);
        BlockOps ops = new CudaBlockOpsProvider().prepare(config, weights, device);
        CudaStream stream = device.newStream();
        CudaEvent event = device.newEvent(true);
        PinnedBuffer pinned = device.allocatePinned(1 << 16);
        DeviceBuffer pooled = device.allocate(1 << 20, stream);
        DeviceBuffer buffer = device.allocate(1 << 20)) {
      Tensor hidden = buffer.tensor(DType.F32, 16, 64);
      Tensor logits = pooled.tensor(DType.F32, 16, 8);
      device.copy(pinned.tensor(DType.F32, 16, 64), hidden, stream);
      Runnable work = () -> ops.routerLogits(hidden, logits, buffer.workspace(), stream);
      work.run();
      try (CudaGraph graph = CudaGraph.capture(device, stream, work)) {
        graph.launch(stream);
        event.record(stream);
        stream.synchronize();
      }
    }
  }
}
