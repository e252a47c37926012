package io.moe4j.benchmarks.cuda;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.cuda.CudaGraph;
import io.moe4j.cuda.CudaStream;
import io.moe4j.cuda.DeviceBuffer;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeSession;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Random;

/**
 * What one forward of one token costs the calling thread, launches enqueued but not waited for: an
 * eager one, and the replay of a captured one, without LoRA and, on {@code triton}, with it.
 * Microseconds, medians.
 *
 * <pre>
 * java -cp ... io.moe4j.benchmarks.cuda.HostCosts [BACKEND]
 * </pre>
 */
public final class HostCosts {
  private static final int HIDDEN = 2048;
  private static final int INTERMEDIATE = 768;
  private static final int EXPERTS = 32;
  private static final int TOP_K = 8;
  private static final int RANK = 16;
  private static final Random RANDOM = new Random(7);

  private HostCosts() {}

  /**
   * Prints the figures.
   *
   * @param args a backend's name; none = {@code triton}
   */
  @SuppressWarnings("SystemOut") // a command
  public static void main(String[] args) {
    var probe = new CudaDeviceProvider().probe();
    if (probe.devices().isEmpty()) {
      System.out.println("no CUDA device: " + probe.absent());
      return;
    }
    String backend = args.length == 0 ? "triton" : args[0];
    MoeConfig base =
        MoeConfig.builder(HIDDEN, INTERMEDIATE, EXPERTS, TOP_K)
            .inputDtype(DType.BF16)
            .weightDtype(DType.BF16)
            .maxTokens(16)
            .build();
    boolean adapters = backend.equals("triton");
    MoeConfig config = adapters ? base.toBuilder().lora(new LoraConfig(4, RANK)).build() : base;
    try (CudaDevice device = new CudaDeviceProvider().open(0);
        MoeLayer layer =
            MoeLayer.builder(config, weights()).backend(backend).device(device).build();
        CudaStream stream = device.newStream();
        MoeSession session = layer.newSession(16);
        DeviceBuffer inBuffer = device.allocate(2L * HIDDEN);
        DeviceBuffer outBuffer = device.allocate(2L * HIDDEN)) {
      System.out.println(device + ", " + backend + ", one token, on the host");
      Tensor in = inBuffer.tensor(DType.BF16, 1, HIDDEN);
      device.copy(bf16(1, HIDDEN), in, stream);
      MoeForward forward = MoeForward.of(in, outBuffer.tensor(DType.BF16, 1, HIDDEN));
      measure(device, stream, "base", () -> session.forward(forward, stream));
      if (!adapters) {
        return;
      }
      try (AdapterRegistry registry =
          AdapterRegistry.builder(Map.of(0, config)).device(device).build()) {
        registry.load(new LoraAdapter("a", Map.of(0, adapter())));
        try (AdapterBatch batch = registry.batch(List.of("a"))) {
          MoeForward lora = forward.withLora(batch.context(0));
          measure(device, stream, "with LoRA", () -> session.forward(lora, stream));
        }
      }
    }
  }

  @SuppressWarnings("SystemOut")
  private static void measure(CudaDevice device, CudaStream stream, String name, Runnable work) {
    double eager = GpuTimer.onHost(stream, work);
    try (CudaGraph graph = CudaGraph.capture(device, stream, work)) {
      double replay = GpuTimer.onHost(stream, () -> graph.launch(stream));
      System.out.printf("%-10s eager %.1f us, replay %.1f us%n", name, eager, replay);
    }
  }

  private static MoeLayerWeights weights() {
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    for (int e = 0; e < EXPERTS; e++) {
      experts.add(
          ExpertWeights.Expert.plain(
              bf16(INTERMEDIATE, HIDDEN), bf16(INTERMEDIATE, HIDDEN), bf16(HIDDEN, INTERMEDIATE)));
    }
    RouterWeights router = new RouterWeights(bf16(EXPERTS, HIDDEN), null, null);
    return new MoeLayerWeights(new ExpertWeights(experts), router, null, null);
  }

  private static LoraLayer adapter() {
    return new LoraLayer(
        Map.of(
            LoraTarget.GATE, factors(HIDDEN, INTERMEDIATE),
            LoraTarget.UP, factors(HIDDEN, INTERMEDIATE),
            LoraTarget.DOWN, factors(INTERMEDIATE, HIDDEN)));
  }

  private static LoraFactors factors(int in, int out) {
    return new LoraFactors(bf16(EXPERTS, RANK, in), bf16(EXPERTS, out, RANK));
  }

  /** Uniform numbers between -0.02 and 0.02. */
  private static Tensor bf16(long... shape) {
    long count = 1;
    for (long n : shape) {
      count *= n;
    }
    short[] values = new short[Math.toIntExact(count)];
    for (int i = 0; i < values.length; i++) {
      values[i] = Tensor.toBFloat16(RANDOM.nextFloat() * 0.04f - 0.02f);
    }
    return Tensor.of(DType.BF16, MemorySegment.ofArray(values), shape);
  }
}
