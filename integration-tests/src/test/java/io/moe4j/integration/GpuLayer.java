package io.moe4j.integration;

import io.moe4j.api.config.ActivationFormat;
import io.moe4j.api.config.ExpertMap;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.config.QuantScheme;
import io.moe4j.api.device.Device;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.lora.LoraFactors;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.LoraTarget;
import io.moe4j.api.routing.ExpertRouting;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.Packing;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.cuda.CudaDevice;
import io.moe4j.cuda.CudaDeviceProvider;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.reference.ReferenceMoe;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * A random layer, bf16 or quantised, on the first card, its adapters, tensors beside it, and the
 * float64 reference of single tokens.
 */
final class GpuLayer implements AutoCloseable {
  private static final int COMPARED = 12;
  private static final int PERIOD = 1_000_003;
  private static final int ROW = 24 * PERIOD;
  private static final Map<Double, byte[]> ROWS = new ConcurrentHashMap<>();

  final CudaDevice device = new CudaDeviceProvider().open(0);
  final MoeConfig config;
  final MoeLayer layer;
  final @Nullable AdapterRegistry registry;
  final ExpertWeights experts;
  private final Map<String, LoraLayer> adapters = new HashMap<>();
  private final Random random = new Random(7);
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
    this(
        c,
        deviation,
        deviation2,
        c.activationFormat() == ActivationFormat.BATCHED ? "batched-triton" : "triton");
  }

  /**
   * @param c in bf16 whatever it says
   * @param deviation of w13
   * @param deviation2 of w2
   * @param backend that computes it
   */
  GpuLayer(MoeConfig c, double deviation, double deviation2, String backend) {
    config = c.toBuilder().inputDtype(DType.BF16).weightDtype(DType.BF16).build();
    List<ExpertWeights.Expert> all = new ArrayList<>();
    for (int e = 0; e < config.numLocalExperts(); e++) {
      all.add(expert(deviation, deviation2));
    }
    experts = new ExpertWeights(all);
    RouterWeights router =
        new RouterWeights(
            host(1 / Math.sqrt(config.hiddenSize()), config.numExperts(), config.hiddenSize()),
            null,
            null);
    layer =
        MoeLayer.builder(config, new MoeLayerWeights(experts, router, null, null))
            .backend(backend)
            .device(device)
            .build();
    registry =
        config.lora().isPresent()
            ? AdapterRegistry.builder(Map.of(0, config)).device(device).build()
            : null;
  }

  private ExpertWeights.Expert expert(double deviation, double deviation2) {
    int h = config.hiddenSize();
    int i = config.intermediateSize();
    ExpertWeights.Expert expert;
    if (!config.isQuantized()) {
      expert =
          ExpertWeights.Expert.plain(
              host(deviation, i, h), host(deviation, i, h), host(deviation2, h, i));
    } else {
      QuantScheme first = config.w13Schemes().getFirst();
      QuantScheme second = config.w2Schemes().getFirst();
      Weight gate = quantised("gate", first, deviation, i, h, 5);
      Weight up = quantised("up", first, deviation, i, h, 5);
      expert = ExpertWeights.Expert.of(gate, up, quantised("down", second, deviation2, h, i, 7));
    }
    return config.expertBias() ? expert.withBias(host(0.3, i), host(0.3, i), host(0.3, h)) : expert;
  }

  /** Codes of one size, scales that differ from group to group. */
  private Weight quantised(
      String name, QuantScheme scheme, double deviation, int out, int in, int stride) {
    if (scheme.equals(QuantScheme.MXFP4)) {
      return Weight.mxfp4(bytes(DType.F4, 0, 255, out, in), exponents(deviation / 3, out, in / 32));
    }
    int rows = Math.toIntExact(scheme.scaleRowCount(out));
    int groups = Math.toIntExact(scheme.scaleColumnCount(in));
    if (scheme.format() == QuantScheme.Format.FP8) {
      Tensor codes = signed(bytes(DType.F8_E4M3, 0x30, 0x3F, out, in));
      return Weight.builder(name, scheme, out, in, codes, Packing.DENSE)
          .scales(scales(DType.F32, deviation, rows, groups))
          .build();
    }
    if (scheme.equals(QuantScheme.NVFP4)) {
      // Scales from 1 to 2; the rest is in the global scale.
      float global = (float) (deviation / 4 * (1 + random.nextDouble()));
      return Weight.builder(name, scheme, out, in, bytes(DType.F4, 0, 255, out, in), Packing.DENSE)
          .scales(bytes(DType.F8_E4M3, 0x38, 0x3F, rows, groups))
          .globalScale(Tensor.ofFloats(new float[] {global}, 1), false)
          .build();
    }
    int bits = scheme.bits();
    int per = Integer.SIZE / bits;
    double unit = deviation / (bits == 4 ? 5 : 80);
    // As GPTQ has it: words along the inputs, transposed.
    Weight.Builder b =
        Weight.builder(
                name,
                scheme,
                out,
                in,
                words(Math.ceilDiv(in, per), out).transpose(0, 1),
                Packing.WORDS_ALONG_IN)
            .scales(scales(DType.F16, unit, groups, rows).transpose(0, 1));
    if (!scheme.symmetric()) {
      b.zeroPoints(
          words(groups, Math.ceilDiv(out, per)).transpose(0, 1), Packing.WORDS_ALONG_OUT, 1);
    }
    if (scheme.actOrder()) {
      int[] index = new int[in];
      for (int k = 0; k < in; k++) {
        index[(int) ((long) k * stride % in)] = k / scheme.scaleColumns();
      }
      b.groupIndex(Tensor.ofInts(index, in));
    }
    return b.build();
  }

  private Tensor words(int rows, int columns) {
    return Tensor.ofInts(random.ints((long) rows * columns).toArray(), rows, columns);
  }

  private Tensor scales(DType dtype, double unit, int rows, int columns) {
    Tensor t =
        Tensor.of(
            dtype,
            MemorySegment.ofArray(new byte[Math.toIntExact(dtype.byteSize((long) rows * columns))]),
            rows,
            columns);
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) {
        t.set(unit * (0.5 + random.nextDouble()), r, c);
      }
    }
    return t;
  }

  /** The sixteen numbers of 4 bits, all equally likely, have a deviation of 3. */
  private Tensor exponents(double middle, int rows, int columns) {
    int exponent = 127 + Math.getExponent(middle);
    return bytes(DType.F8_E8M0, exponent - 2, exponent + 1, rows, columns);
  }

  private Tensor bytes(DType dtype, int least, int most, int rows, int columns) {
    byte[] all = new byte[Math.toIntExact(dtype.byteSize((long) rows * columns))];
    for (int i = 0; i < all.length; i++) {
      all[i] = (byte) random.nextInt(least, most + 1);
    }
    return Tensor.of(dtype, MemorySegment.ofArray(all), rows, columns);
  }

  /** Numbers of one sign would sum up to gates so far from 0 that a rounding of them shows. */
  private Tensor signed(Tensor codes) {
    MemorySegment all = codes.segment();
    for (long i = 0; i < all.byteSize(); i++) {
      if (random.nextBoolean()) {
        all.set(ValueLayout.JAVA_BYTE, i, (byte) (all.get(ValueLayout.JAVA_BYTE, i) | 0x80));
      }
    }
    return codes;
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

  /** Normal numbers in bf16, each tensor another piece of one long row of them. */
  Tensor host(double deviation, long... shape) {
    long count = 1;
    for (long s : shape) {
      count *= s;
    }
    byte[] row = ROWS.computeIfAbsent(deviation, GpuLayer::row);
    if (count > ROW / 2) {
      row = Arrays.copyOf(row, Math.toIntExact(2 * count));
      for (int at = 2 * ROW; at < row.length; at += 2 * ROW) {
        System.arraycopy(row, 0, row, at, Math.min(2 * ROW, row.length - at));
      }
    }
    long from = 8L * random.nextInt(Math.toIntExact((row.length / 2 - count) / 8 + 1));
    MemorySegment piece = MemorySegment.ofArray(row).asSlice(2 * from, 2 * count);
    return Tensor.of(DType.BF16, new HostMemory(piece), shape);
  }

  private static byte[] row(double deviation) {
    byte[] row = new byte[2 * ROW];
    Tensor all = Tensor.of(DType.BF16, MemorySegment.ofArray(row), ROW);
    Random random = new Random(11);
    for (int i = 0; i < PERIOD; i++) {
      all.set(random.nextGaussian(0, deviation), i);
    }
    for (int at = 2 * PERIOD; at < row.length; at += 2 * PERIOD) {
      System.arraycopy(row, 0, row, at, Math.min(2 * PERIOD, row.length - at));
    }
    return row;
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
