package io.moe4j.integration;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * A random layer, bf16 or quantised, on the first card, its adapters, tensors beside it, and the
 * float64 reference of single tokens.
 */
final class GpuLayer implements AutoCloseable {
  private static final int COMPARED = 12;
  private static final int SEED = 7;

  /** Of what comes beside shared experts, which began with {@link #SEED}. */
  private static final int OTHER_SEED = 13;

  final CudaDevice device = Card.open();
  final MoeConfig config;
  final MoeLayer layer;
  final @Nullable AdapterRegistry registry;
  final ExpertWeights experts;
  private final Map<String, LoraLayer> adapters = new HashMap<>();
  private final RandomTensors random;
  private final List<Device.Buffer> buffers = new ArrayList<>();

  GpuLayer(int hidden, int intermediate, int experts, int topK, int maxTokens, LoraConfig lora) {
    this(
        MoeConfig.builder(hidden, intermediate, experts, topK)
            .maxTokens(maxTokens)
            .lora(lora)
            .build(),
        1 / Math.sqrt(hidden),
        1 / Math.sqrt(intermediate));
  }

  /**
   * @param c in bf16 whatever it says
   * @param deviation of w13
   * @param deviation2 of w2
   */
  GpuLayer(MoeConfig c, double deviation, double deviation2) {
    this(c, deviation, deviation2, triton(c));
  }

  /**
   * @param c in bf16 whatever it says
   * @param shared its experts, on this card, too; stay the caller's
   */
  GpuLayer(MoeConfig c, SharedExperts.Experts shared) {
    this(c, new RandomTensors(OTHER_SEED), shared, triton(c));
  }

  /**
   * @param c in bf16 whatever it says
   * @param deviation of w13
   * @param deviation2 of w2
   * @param backend that computes it
   */
  GpuLayer(MoeConfig c, double deviation, double deviation2, String backend) {
    this(c, new RandomTensors(SEED), r -> r.experts(c, deviation, deviation2), backend);
  }

  private GpuLayer(
      MoeConfig c,
      RandomTensors random,
      Function<RandomTensors, ExpertWeights> experts,
      String backend) {
    this(c, random, SharedExperts.Experts.onHost(experts.apply(random)), backend);
  }

  private GpuLayer(
      MoeConfig c, RandomTensors random, SharedExperts.Experts shared, String backend) {
    config = c.toBuilder().inputDtype(DType.BF16).weightDtype(DType.BF16).build();
    this.random = random;
    experts = shared.host();
    RouterWeights router =
        new RouterWeights(
            host(1 / Math.sqrt(config.hiddenSize()), config.numExperts(), config.hiddenSize()),
            null,
            null);
    layer =
        MoeLayer.builder(config, new MoeLayerWeights(shared.there(), router, null, null))
            .backend(backend)
            .device(device)
            .build();
    registry =
        config.lora().isPresent()
            ? AdapterRegistry.builder(Map.of(0, config)).device(device).build()
            : null;
  }

  private static String triton(MoeConfig c) {
    return c.activationFormat() == ActivationFormat.BATCHED ? "batched-triton" : "triton";
  }

  /** Gate, up and down of every expert; deltas about as large as what they are added to. */
  void load(String name, int rank) {
    int e = config.numLocalExperts();
    int h = config.hiddenSize();
    int i = config.intermediateSize();
    LoraLayer factors =
        new LoraLayer(
            Map.of(
                LoraTarget.GATE, factors(e, rank, h, i),
                LoraTarget.UP, factors(e, rank, h, i),
                LoraTarget.DOWN, factors(e, rank, i, h)));
    adapters.put(name, factors);
    registry.load(new LoraAdapter(name, Map.of(0, factors)));
  }

  private LoraFactors factors(int experts, int rank, int in, int out) {
    return new LoraFactors(
        host(1 / Math.sqrt(in), experts, rank, in), host(1 / Math.sqrt(rank), experts, out, rank));
  }

  /** What a token's chosen experts make of it, weighted. */
  double[] reference(int token, Tensor hidden, Tensor ids, Tensor weights, @Nullable String name) {
    Tensor map =
        config.expertMap().map(m -> Tensor.ofInts(m.toArray(), m.numGlobalExperts())).orElse(null);
    return ReferenceMoe.experts(
        config,
        experts,
        new ExpertRouting(ids, weights, map),
        token,
        hidden.select(0, token).toDoubles(),
        name == null ? null : adapters.get(name));
  }

  /** {@return a map that has every {@code ranks}-th expert, chosen at random, in any order} */
  static ExpertMap someLocal(int experts, int ranks, Random random) {
    List<Integer> order = new ArrayList<>(IntStream.range(0, experts).boxed().toList());
    Collections.shuffle(order, random);
    int[] map = new int[experts];
    Arrays.fill(map, -1);
    for (int i = 0; i < experts / ranks; i++) {
      map[order.get(i)] = i;
    }
    return ExpertMap.of(map);
  }

  /** {@return which tokens to compare: all of a few, some of many} */
  static IntStream compared(int tokens) {
    return IntStream.range(0, Math.min(tokens, COMPARED))
        .map(i -> tokens <= COMPARED ? i : (int) ((long) i * (tokens - 1) / (COMPARED - 1)));
  }

  /** Normal numbers in bf16. */
  Tensor host(double deviation, long... shape) {
    return random.host(deviation, shape);
  }

  Tensor empty(DType dtype, long... shape) {
    long count = 1;
    for (long s : shape) {
      count *= s;
    }
    Device.Buffer b = device.allocate(dtype.byteSize(count));
    buffers.add(b);
    return Tensor.of(dtype, b.memory(), shape);
  }

  void put(Tensor host, Tensor there) {
    device.copy(host, there, device.defaultStream());
    device.defaultStream().synchronize();
  }

  float[] get(Tensor there) {
    return download(there).toFloats();
  }

  Tensor download(Tensor there) {
    byte[] bytes = new byte[Math.toIntExact(there.dtype().byteSize(there.elementCount()))];
    Tensor host = Tensor.of(there.dtype(), MemorySegment.ofArray(bytes), there.shape());
    device.copy(there, host, device.defaultStream());
    device.defaultStream().synchronize();
    return host;
  }

  @Override
  public void close() {
    if (registry != null) {
      registry.close();
    }
    layer.close();
    buffers.forEach(Device.Buffer::close);
    device.close();
  }
}
