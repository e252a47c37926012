package io.moe4j.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import com.sun.management.ThreadMXBean;
import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import java.lang.management.ManagementFactory;
import java.util.Arrays;
import java.util.Map;
import java.util.Random;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;

/** What a launch costs on the host, and what the kernels before the experts cost on the card. */
@GpuTest
class LaunchCostTest {
  private static final int LAUNCHES = 2000;
  private static final int ROUNDS = 11;

  @Test
  void launchIsShortAndAllocatesNothing() {
    try (Gpu gpu = new Gpu()) {
      Kernel cast = SharedKernels.load(gpu.device, "cast", Map.of("in", "f32", "out", "f32"));
      Tensor x = gpu.empty(DType.F32, 32);
      Tensor y = gpu.empty(DType.F32, 32);
      double[] micros = new double[ROUNDS];
      for (int round = 0; round < ROUNDS; round++) {
        gpu.stream.synchronize();
        long start = System.nanoTime();
        for (int i = 0; i < LAUNCHES / 4; i++) {
          cast.begin().pointer(x).pointer(y).i64(32).launch(gpu.stream, 1);
        }
        micros[round] = (System.nanoTime() - start) / 1e3 / (LAUNCHES / 4);
      }
      gpu.stream.synchronize();
      double[] current = new double[ROUNDS];
      for (int round = 0; round < ROUNDS; round++) {
        long start = System.nanoTime();
        for (int i = 0; i < LAUNCHES; i++) {
          cast.context().makeCurrent();
        }
        current[round] = (System.nanoTime() - start) / 1e3 / LAUNCHES;
      }
      Arrays.sort(current);
      Arrays.sort(micros);
      var threads = (ThreadMXBean) ManagementFactory.getThreadMXBean();
      long before = threads.getCurrentThreadAllocatedBytes();
      for (int i = 0; i < LAUNCHES; i++) {
        cast.begin().pointer(x).pointer(y).i64(32).launch(gpu.stream, 1);
      }
      double bytes = (threads.getCurrentThreadAllocatedBytes() - before) / (double) LAUNCHES;
      gpu.stream.synchronize();
      System.out.printf(
          "launch: %.2f us median, %.2f us best of %d rounds, of which context %.2f us; %.1f bytes of heap%n",
          micros[ROUNDS / 2], micros[0], ROUNDS, current[ROUNDS / 2], bytes);
      assertThat(micros[ROUNDS / 2]).as("microseconds a launch").isLessThan(10);
      assertThat(bytes).as("heap bytes a launch").isLessThan(64);
    }
  }

  @Test
  void routingAndSortTimes() {
    int experts = 128;
    int k = 8;
    for (int slots : new int[] {0, 32}) {
      for (int tokens : new int[] {1, 16, 64, 256, 1024, 4096, 8192}) {
        try (Gpu gpu = new Gpu();
            CudaEvent start = gpu.device.newEvent(true);
            CudaEvent end = gpu.device.newEvent(true)) {
          Random random = new Random(tokens);
          Tensor logits =
              gpu.floats(DType.F32, Gpu.random(random, tokens * experts, 1f), tokens, experts);
          Tensor ids = gpu.empty(DType.I32, tokens, k);
          Tensor weights = gpu.empty(DType.F32, tokens, k);
          Tensor mapping =
              slots == 0
                  ? null
                  : gpu.ints(IntStream.range(0, tokens).map(t -> t % slots).toArray(), tokens);
          TopkKernel topk =
              new TopkKernel(gpu.device, RoutingConfig.SOFTMAX_RENORMALIZE, experts, k);
          PairSort sort = new PairSort(gpu.device, slots, Integer.MAX_VALUE);
          PairSort two = new PairSort(gpu.device, slots, 0);
          PairSort.Layout layout = PairSort.Layout.of(tokens * k, experts, slots, 64, 16);
          Tensor memory = gpu.empty(DType.U8, layout.byteSize());
          ExpertRouting routing = new ExpertRouting(ids, weights, null);
          Runnable top = () -> topk.run(logits, null, ids, weights, gpu.stream);
          Runnable order =
              () -> sort.run(routing, mapping, null, layout, memory.deviceAddress(), gpu.stream);
          Runnable inTwo =
              () -> two.run(routing, mapping, null, layout, memory.deviceAddress(), gpu.stream);
          top.run();
          order.run();
          inTwo.run();
          double a = replay(gpu, start, end, top);
          double b = replay(gpu, start, end, order);
          double c = replay(gpu, start, end, inTwo);
          System.out.printf(
              "E=%d K=%d slots=%d T=%d: topk %.2f us, sort %.2f us, in two launches %.2f us%n",
              experts, k, slots, tokens, a, b, c);
          assertThat(a + b).isPositive();
        }
      }
    }
  }

  @Test
  void routerProductTimes() {
    int experts = 128;
    int hidden = 2048;
    for (DType weightType : new DType[] {DType.BF16, DType.F32}) {
      for (int tokens : new int[] {1, 16, 64, 256, 1024, 8192}) {
        try (Gpu gpu = new Gpu();
            CudaEvent start = gpu.device.newEvent(true);
            CudaEvent end = gpu.device.newEvent(true)) {
          Random random = new Random(tokens);
          DenseGemm gemm = new DenseGemm(gpu.device);
          ElementwiseKernels kernels = new ElementwiseKernels(gpu.device);
          Tensor x = gpu.empty(DType.BF16, tokens, hidden);
          Tensor w = gpu.empty(weightType, experts, hidden);
          kernels.cast(
              gpu.floats(DType.F32, Gpu.random(random, tokens * hidden, 1f), tokens, hidden),
              x,
              gpu.stream);
          kernels.cast(
              gpu.floats(DType.F32, Gpu.random(random, experts * hidden, 1f), experts, hidden),
              w,
              gpu.stream);
          Tensor y = gpu.empty(DType.F32, tokens, experts);
          double micros = replay(gpu, start, end, () -> gemm.run(x, w, null, y, gpu.stream));
          System.out.printf(
              "router BF16 x %s, E=%d H=%d T=%d: %.2f us%n",
              weightType, experts, hidden, tokens, micros);
          assertThat(gpu.floats(y)).doesNotContain(Float.NaN);
        }
      }
    }
  }

  /** Microseconds of one run: a graph of 20, replayed, the median. */
  private static double replay(Gpu gpu, CudaEvent start, CudaEvent end, Runnable work) {
    int unroll = 20;
    try (CudaGraph graph =
        CudaGraph.capture(
            gpu.device,
            gpu.stream,
            () -> {
              for (int i = 0; i < unroll; i++) {
                work.run();
              }
            })) {
      double[] micros = new double[ROUNDS];
      for (int i = -3; i < ROUNDS; i++) {
        start.record(gpu.stream);
        graph.launch(gpu.stream);
        end.record(gpu.stream);
        end.synchronize();
        if (i >= 0) {
          micros[i] = end.microsSince(start) / unroll;
        }
      }
      Arrays.sort(micros);
      return micros[ROUNDS / 2];
    }
  }
}
