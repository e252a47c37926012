package io.moe4j.benchmarks.cuda;

import io.moe4j.api.config.RoutingConfig;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DenseGemm;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.cuda.ElementwiseKernels;
import io.moe4j.cuda.PairSort;
import io.moe4j.cuda.TopkKernel;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.jspecify.annotations.Nullable;

/**
 * What a launch costs on the host, and what the kernels before the experts cost on the card: top-k,
 * the sort of pairs, the router's product. Microseconds, medians.
 *
 * <pre>
 * java -cp ... io.moe4j.benchmarks.cuda.LaunchCosts
 * </pre>
 */
public final class LaunchCosts implements AutoCloseable {
  private static final int EXPERTS = 128;
  private static final int TOP_K = 8;
  private static final int HIDDEN = 2048;

  private final CudaDevice device = new CudaDeviceProvider().open(0);
  private final CudaStream stream = device.newStream();
  private final ElementwiseKernels elementwise = new ElementwiseKernels(device);
  private final List<DeviceBuffer> buffers = new ArrayList<>();
  private final Random random = new Random(7);

  private LaunchCosts() {}

  /**
   * Prints the tables.
   *
   * @param args none
   */
  @SuppressWarnings("SystemOut") // a command
  public static void main(String[] args) {
    var probe = new CudaDeviceProvider().probe();
    if (probe.devices().isEmpty()) {
      System.out.println("no CUDA device: " + probe.absent());
      return;
    }
    try (LaunchCosts costs = new LaunchCosts()) {
      System.out.println(costs.device);
      costs.launch();
      costs.routing();
      costs.routerProduct();
    }
  }

  @SuppressWarnings("SystemOut")
  private void launch() {
    Tensor x = empty(DType.F32, 32);
    Tensor y = empty(DType.BF16, 32);
    double micros = GpuTimer.onHost(stream, () -> elementwise.cast(x, y, stream));
    System.out.printf("launch of a cast of 32 numbers, on the host: %.2f us%n", micros);
  }

  @SuppressWarnings("SystemOut")
  private void routing() {
    for (int slots : new int[] {0, 32}) {
      for (int tokens : new int[] {1, 16, 64, 256, 1024, 4096, 8192}) {
        Tensor logits = random(DType.F32, tokens, EXPERTS);
        Tensor ids = empty(DType.I32, tokens, TOP_K);
        Tensor weights = empty(DType.F32, tokens, TOP_K);
        Tensor mapping = slots == 0 ? null : mapping(tokens, slots);
        TopkKernel topk =
            new TopkKernel(device, RoutingConfig.SOFTMAX_RENORMALIZE, EXPERTS, TOP_K);
        PairSort sort = new PairSort(device, slots);
        PairSort.Layout layout = PairSort.Layout.of(tokens * TOP_K, EXPERTS, slots, 64, 16);
        long memory = empty(DType.U8, layout.byteSize()).deviceAddress();
        ExpertRouting routing = new ExpertRouting(ids, weights, null);
        double choose =
            GpuTimer.replayed(
                device, stream, () -> topk.run(logits, null, ids, weights, stream));
        double order =
            GpuTimer.replayed(device, stream, () -> sort(sort, routing, mapping, layout, memory));
        System.out.printf(
            "E=%d K=%d slots=%d T=%d: topk %.2f us, sort %.2f us%n",
            EXPERTS, TOP_K, slots, tokens, choose, order);
        release();
      }
    }
  }

  private void sort(
      PairSort sort,
      ExpertRouting routing,
      @Nullable Tensor mapping,
      PairSort.Layout layout,
      long memory) {
    sort.run(routing, mapping, null, layout, memory, stream);
  }

  @SuppressWarnings("SystemOut")
  private void routerProduct() {
    DenseGemm gemm = new DenseGemm(device);
    for (DType type : new DType[] {DType.BF16, DType.F32}) {
      for (int tokens : new int[] {1, 16, 64, 256, 1024, 8192}) {
        Tensor x = random(DType.BF16, tokens, HIDDEN);
        Tensor w = random(type, EXPERTS, HIDDEN);
        Tensor y = empty(DType.F32, tokens, EXPERTS);
        double micros =
            GpuTimer.replayed(device, stream, () -> gemm.run(x, w, null, y, stream));
        System.out.printf(
            "router BF16 x %s, E=%d H=%d T=%d: %.2f us%n", type, EXPERTS, HIDDEN, tokens, micros);
        release();
      }
    }
  }

  private Tensor mapping(int tokens, int slots) {
    int[] slot = new int[tokens];
    for (int t = 0; t < tokens; t++) {
      slot[t] = t % slots;
    }
    Tensor there = empty(DType.I32, tokens);
    device.copy(Tensor.ofInts(slot, tokens), there, stream);
    stream.synchronize();
    return there;
  }

  private Tensor random(DType type, int rows, int columns) {
    float[] values = new float[rows * columns];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) random.nextGaussian();
    }
    Tensor there = empty(DType.F32, rows, columns);
    device.copy(Tensor.ofFloats(values, rows, columns), there, stream);
    if (type == DType.F32) {
      stream.synchronize();
      return there;
    }
    Tensor rounded = empty(type, rows, columns);
    elementwise.cast(there, rounded, stream);
    stream.synchronize();
    return rounded;
  }

  private Tensor empty(DType type, long... shape) {
    long count = 1;
    for (long n : shape) {
      count *= n;
    }
    DeviceBuffer buffer = device.allocate(type.byteSize(count));
    buffers.add(buffer);
    return buffer.tensor(type, shape);
  }

  private void release() {
    stream.synchronize();
    buffers.forEach(DeviceBuffer::close);
    buffers.clear();
  }

  @Override
  public void close() {
    release();
    stream.close();
    device.close();
  }
}
