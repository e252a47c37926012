package io.moe4j.cli.bench;

import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.DeviceProvider;
import io.moe4j.api.lora.LoraAdapter;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.FoundDeviceProvider;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.lang.foreign.Arena;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import org.jspecify.annotations.Nullable;

/**
 * Measures layers: for each shape, dtype and number of tokens the base layer and the same layer
 * with adapters, in turn, with the machine's limits sampled in between. Every repetition has other
 * hidden states, so that other experts are chosen and no cache holds them. Not thread-safe.
 */
public final class LayerBench implements AutoCloseable {
  /** Hidden states that repetitions go round. */
  private static final int INPUTS = 12;

  private static final int REPETITIONS_PER_SAMPLE = 4;

  /**
   * What to measure.
   *
   * @param tokens numbers of tokens, ascending
   * @param adapters adapters mixed round-robin, 0 = no LoRA
   * @param rank their rank
   * @param threads of the backend, for the limits
   * @param backend asked for by name, or null
   * @param quick fewer and shorter repetitions
   */
  public record Plan(
      List<Integer> tokens,
      int adapters,
      int rank,
      int threads,
      @Nullable String backend,
      boolean quick) {
    /** Long enough for the compiler to come to what a case runs: seconds, with both cores busy. */
    double warmSeconds() {
      return quick ? 0.4 : 4.0;
    }

    double measureSeconds() {
      return quick ? 0.6 : 6.0;
    }

    int minRepetitions() {
      return quick ? 5 : 15;
    }
  }

  private final MoeOracle oracle;
  private final Plan plan;
  private final Roofline roofline;
  private final List<Measured> measured = new ArrayList<>();
  private final List<BenchReport.Layer> layers = new ArrayList<>();

  /** One case before the limits of the whole run are known. */
  private record Measured(
      BenchShape shape,
      BenchWeights dtype,
      int tokens,
      String backend,
      boolean lora,
      Times times,
      double bytes,
      double flops,
      double tax) {}

  /** What the repetitions of a case took, in nanoseconds. */
  private record Times(double median, double min, int count) {
    static Times of(List<Double> nanos) {
      double[] sorted = nanos.stream().mapToDouble(Double::doubleValue).sorted().toArray();
      int n = sorted.length;
      double median = n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
      return new Times(median, sorted[0], n);
    }
  }

  /** Both of a case; without adapters the second is null. */
  private record Pair(Times base, @Nullable Times lora) {}

  /**
   * Takes the memory for sampling the limits, and warms that up.
   *
   * @param oracle who chooses; stays the caller's
   * @param plan what to measure
   */
  public LayerBench(MoeOracle oracle, Plan plan) {
    this.oracle = oracle;
    this.plan = plan;
    this.roofline = new Roofline(plan.threads(), bf16Peak(oracle));
  }

  private static DeviceProvider.@Nullable PeakLoop bf16Peak(MoeOracle oracle) {
    return oracle.catalog().deviceProviders().stream()
        .map(FoundDeviceProvider::provider)
        .filter(p -> p.type().equals(DeviceType.CPU))
        .flatMap(p -> p.peakLoop(DType.BF16).stream())
        .findFirst()
        .orElse(null);
  }

  /** Told before each case. */
  @FunctionalInterface
  public interface Listener {
    /**
     * A case begins.
     *
     * @param what shape, dtype and tokens
     */
    void begins(String what);
  }

  /**
   * {@return the memory that a shape takes, in bytes: weights, a repacked copy, adapters}
   *
   * @param shape the shape
   * @param weights what experts are stored as
   */
  public long memoryBytes(BenchShape shape, BenchWeights weights) {
    long perRank = 2L * shape.hiddenSize() + 3L * shape.intermediateSize();
    long factors = (long) plan.adapters() * plan.rank() * shape.numExperts() * perRank;
    long lora = weights.dtype().byteSize(factors);
    return 2 * weights.bytes(shape) + lora + (256L << 20);
  }

  /**
   * Measures one shape over all numbers of tokens.
   *
   * @param shape the shape
   * @param dtype what experts are stored as
   * @param listener told before each case
   * @throws io.moe4j.oracle.UnsupportedConfigException if no backend fits
   */
  public void run(BenchShape shape, BenchWeights dtype, Listener listener) {
    int most = plan.tokens().stream().mapToInt(Integer::intValue).max().orElse(1);
    MoeConfig.Builder b = shape.config(dtype.dtype(), most).quantScheme(dtype.scheme());
    if (plan.adapters() > 0) {
      b.lora(new LoraConfig(plan.adapters(), plan.rank()));
    }
    MoeConfig config = b.build();
    try (Arena arena = Arena.ofShared()) {
      SyntheticLayer data = new SyntheticLayer(shape, dtype, arena);
      try (MoeLayer layer =
          MoeLayer.builder(config, data.weights())
              .oracle(oracle)
              .platform(host(oracle.catalog().detectPlatform()))
              .backend(plan.backend())
              .build()) {
        layers.add(new BenchReport.Layer(shape.name(), dtype.text(), layer.selection()));
        try (AdapterRegistry registry = registry(config, data)) {
          for (int t : plan.tokens()) {
            listener.begins(shape.name() + " " + dtype.text() + " T=" + t);
            new Case(shape, dtype, layer, registry, data, t).measure();
          }
        }
      }
    }
  }

  /** A machine without what the limits of the host say nothing of. */
  static Platform host(Platform machine) {
    Map<DeviceType, String> absent = new HashMap<>(machine.absent());
    List<DeviceInfo> here = new ArrayList<>();
    for (DeviceInfo d : machine.devices()) {
      if (d.id().type().equals(DeviceType.CPU)) {
        here.add(d);
      } else {
        absent.put(d.id().type(), "the host is measured; --device cuda measures a GPU");
      }
    }
    return new Platform(here, absent);
  }

  private @Nullable AdapterRegistry registry(MoeConfig config, SyntheticLayer data) {
    if (plan.adapters() == 0) {
      return null;
    }
    AdapterRegistry registry = AdapterRegistry.builder(Map.of(0, config)).build();
    for (int i = 0; i < plan.adapters(); i++) {
      LoraAdapter adapter = data.adapter("a" + i, plan.rank());
      registry.load(adapter);
    }
    return registry;
  }

  /** One number of tokens. */
  private final class Case {
    private final BenchShape shape;
    private final BenchWeights dtype;
    private final MoeLayer layer;
    private final @Nullable AdapterRegistry registry;
    private final int tokens;
    private final Tensor[] inputs = new Tensor[INPUTS];
    private final Tensor output;
    private final Tensor ids;
    private final Tensor weights;

    Case(
        BenchShape shape,
        BenchWeights dtype,
        MoeLayer layer,
        @Nullable AdapterRegistry registry,
        SyntheticLayer data,
        int tokens) {
      this.shape = shape;
      this.dtype = dtype;
      this.layer = layer;
      this.registry = registry;
      this.tokens = tokens;
      for (int i = 0; i < INPUTS; i++) {
        inputs[i] = data.hidden(tokens);
      }
      output = data.zeros(DType.F32, tokens, shape.hiddenSize());
      ids = data.zeros(DType.I32, tokens, shape.topK());
      weights = data.zeros(DType.F32, tokens, shape.topK());
    }

    void measure() {
      MoeForward[] base = new MoeForward[INPUTS];
      Arrays.setAll(base, i -> MoeForward.of(inputs[i], output));
      double bytes = bytes(base);
      double flops =
          2.0 * tokens * shape.topK() * 3 * shape.hiddenSize() * shape.intermediateSize()
              + 2.0 * tokens * shape.hiddenSize() * shape.numExperts();
      if (registry == null) {
        add(false, timed(base, null).base(), bytes, flops, Double.NaN);
        return;
      }
      int[] handles = new int[tokens];
      for (int t = 0; t < tokens; t++) {
        handles[t] = registry.handle("a" + t % plan.adapters());
      }
      try (AdapterBatch batch = registry.batch(handles)) {
        MoeForward[] lora = new MoeForward[INPUTS];
        // Other inputs than the base layer's turn before it, which would leave their experts in a
        // cache.
        Arrays.setAll(lora, i -> base[(i + INPUTS / 2) % INPUTS].withLora(batch.context(0)));
        Pair times = timed(base, lora);
        Times with = Objects.requireNonNull(times.lora());
        add(false, times.base(), bytes, flops, Double.NaN);
        add(true, with, bytes, flops, with.median() / times.base().median());
      }
    }

    private void add(boolean lora, Times times, double bytes, double flops, double tax) {
      String backend = layer.selection().chosenBackend().name();
      measured.add(new Measured(shape, dtype, tokens, backend, lora, times, bytes, flops, tax));
    }

    /** Mean over the inputs: experts that were chosen, router, input, output. */
    private double bytes(MoeForward[] requests) {
      double experts = 0;
      for (MoeForward r : requests) {
        layer.forward(r.topkInto(ids, weights));
        BitSet chosen = new BitSet();
        for (int id : ids.toInts()) {
          chosen.set(id);
        }
        experts += chosen.cardinality();
      }
      double expertBytes = (double) dtype.bytes(shape) / shape.numExperts();
      DType plain = dtype.dtype();
      double router = plain.byteSize((long) shape.numExperts() * shape.hiddenSize());
      long elements = (long) tokens * shape.hiddenSize();
      double activations = plain.byteSize(elements) + DType.F32.byteSize(elements);
      return experts / requests.length * expertBytes + router + activations;
    }

    /** Measures the base layer and the one with adapters in turn. */
    private Pair timed(MoeForward[] base, MoeForward @Nullable [] lora) {
      long warmEnd = System.nanoTime() + (long) (plan.warmSeconds() * 1e9);
      int i = 0;
      do {
        layer.forward(base[i % INPUTS]);
        if (lora != null) {
          layer.forward(lora[i % INPUTS]);
        }
        i++;
      } while (System.nanoTime() < warmEnd || i < 3);
      List<Double> baseNanos = new ArrayList<>();
      List<Double> loraNanos = new ArrayList<>();
      long end = System.nanoTime() + (long) (plan.measureSeconds() * 1e9);
      for (int r = 0; System.nanoTime() < end || r < plan.minRepetitions(); r++) {
        if (r % REPETITIONS_PER_SAMPLE == 0) {
          roofline.sample();
        }
        // In turn, and now one first, now the other.
        if (lora != null && r % 2 == 1) {
          loraNanos.add(once(lora[r % INPUTS]));
        }
        baseNanos.add(once(base[r % INPUTS]));
        if (lora != null && r % 2 == 0) {
          loraNanos.add(once(lora[r % INPUTS]));
        }
      }
      return new Pair(Times.of(baseNanos), lora == null ? null : Times.of(loraNanos));
    }

    private double once(MoeForward request) {
      long start = System.nanoTime();
      layer.forward(request);
      return System.nanoTime() - start;
    }
  }

  /**
   * {@return what was measured so far, against the median limits of the whole run}
   *
   * @param when date and time, for the report
   * @param machine what is known of the machine
   * @param peers times of others
   */
  public BenchReport report(String when, List<BenchReport.Fact> machine, List<Peer> peers) {
    Roofline.Limits limits = roofline.limits();
    List<BenchRow> rows = new ArrayList<>();
    for (Measured m : measured) {
      rows.add(
          new BenchRow(
              m.shape().name(),
              m.dtype().text(),
              m.tokens(),
              m.backend(),
              m.lora() ? plan.adapters() : 0,
              m.lora() ? plan.rank() : 0,
              m.times().median(),
              m.times().min(),
              m.times().count(),
              m.bytes(),
              m.flops(),
              limits.bytesNanos(m.bytes()),
              limits.flopsNanos(m.flops(), m.dtype().dtype() == DType.BF16),
              m.tax()));
    }
    return new BenchReport(when, machine, limits, rows, layers, peers);
  }

  @Override
  public void close() {
    roofline.close();
  }
}
