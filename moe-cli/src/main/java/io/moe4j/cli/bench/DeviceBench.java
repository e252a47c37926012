package io.moe4j.cli.bench;

import io.moe4j.api.DeviceException;
import io.moe4j.api.config.LoraConfig;
import io.moe4j.api.config.MoeConfig;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.lora.LoraLayer;
import io.moe4j.api.lora.PunicaWrapper;
import io.moe4j.api.lora.SlotsKey;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.platform.DeviceType;
import io.moe4j.api.platform.Platform;
import io.moe4j.api.tensor.DType;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.lora.PunicaProviders;
import io.moe4j.oracle.FoundBackend;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import io.moe4j.oracle.MoeSession;
import io.moe4j.oracle.Selection;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.locks.LockSupport;
import org.jspecify.annotations.Nullable;

/**
 * Measures layers on a device other than the host, with bf16 activations: from router logits to the
 * weighted sum, so with routing and sorting, without the router's own product. A recorded pass over
 * several batches (other tokens, routings and assignments each) is replayed; the time of a forward
 * is the median replay over their number. Large forwards draw more power than a card may for long,
 * and its clock drops within some tenths of a second: with a rest of 0 it comes from the case
 * before and stays at full load, otherwise it rests so long before each case. Not thread-safe.
 *
 * <p>Times are the device's: what the host takes to send a replay off and to see its end, some ten
 * microseconds, is not in them.
 */
public final class DeviceBench implements AutoCloseable {
  private static final int SAMPLES = 21;
  private static final double SETTLE_SECONDS = 0.05;
  private static final double SETTLE_SECONDS_RESTED = 0.005;
  private static final double SAMPLE_NANOS = 4e6;
  private static final double SAMPLE_NANOS_RESTED = 1e6;
  private static final int MAX_REPLAYS = 50;

  /**
   * A column of the grid.
   *
   * @param rank of all adapters
   * @param adapters how many, mixed round-robin over the tokens
   */
  public record Lora(int rank, int adapters) {
    /** The base model. */
    public static final Lora NONE = new Lora(0, 0);
  }

  /** Told before each case. */
  @FunctionalInterface
  public interface Listener {
    /**
     * A case begins.
     *
     * @param what shape, tokens and adapters
     */
    void begins(String what);
  }

  private final MoeOracle oracle;
  private final @Nullable String backend;
  private @Nullable PunicaWrapper punica;
  private final BenchWeights weightKind;
  private final List<Integer> tokens;
  private final List<Lora> grid;
  private final int restMillis;
  private final Draws draws;
  private final Device device;
  private final List<DeviceBenchReport.Row> rows = new ArrayList<>();
  private boolean profile;

  private DeviceBench(
      MoeOracle oracle,
      @Nullable String backend,
      BenchWeights weightKind,
      List<Integer> tokens,
      List<Lora> grid,
      int restMillis,
      Draws draws,
      Device device) {
    this.oracle = oracle;
    this.backend = backend;
    this.weightKind = weightKind;
    this.tokens = tokens;
    this.grid = grid;
    this.restMillis = restMillis;
    this.draws = draws;
    this.device = device;
  }

  /**
   * Opens the device of the backend that would be chosen.
   *
   * @param oracle who chooses; stays the caller's
   * @param backend asked for by name, or null
   * @param weights what the experts' weights are
   * @param tokens numbers of tokens, ascending
   * @param grid adapters, the base model first
   * @param restMillis how long the card rests before each case; 0 = it goes on at full load
   * @param draws how routings are drawn
   * @return the bench
   * @throws DeviceException if the best backend computes on the host
   * @throws io.moe4j.oracle.UnsupportedConfigException if none fits
   */
  public static DeviceBench open(
      MoeOracle oracle,
      @Nullable String backend,
      BenchWeights weights,
      List<Integer> tokens,
      List<Lora> grid,
      int restMillis,
      Draws draws) {
    MoeConfig config = config(BenchShape.DEVICE.getFirst(), weights, 1, grid.getLast());
    Platform platform = oracle.catalog().detectPlatform();
    Selection selection = oracle.select(config, platform, backend);
    FoundBackend chosen = selection.chosenBackend();
    if (chosen.deviceType().equals(DeviceType.CPU)) {
      throw new DeviceException(
          "moe bench --device cuda: the chosen backend, "
              + chosen.name()
              + ", computes on the host"
              + (platform.device(DeviceType.CUDA).isPresent()
                  ? "; moe backends says why no other was taken"
                  : "; " + platform.whyAbsent(DeviceType.CUDA)));
    }
    DeviceInfo info = platform.device(chosen.deviceType()).orElseThrow();
    return new DeviceBench(
        oracle,
        backend,
        weights,
        tokens,
        grid,
        restMillis,
        draws,
        oracle.catalog().openDevice(chosen, info.id()));
  }

  /**
   * From here on cases are not timed, which a profiler would disturb, but run one forward each for
   * it, of their first batch and outside of any graph: {@link Device#profiled}. Nothing else is
   * marked, so launches come in the order of the report's rows.
   */
  public void profile() {
    profile = true;
  }

  /** For backends that leave LoRA to a wrapper; made when one asks. */
  private PunicaWrapper punica() {
    PunicaWrapper wrapper = punica;
    if (wrapper == null) {
      wrapper = PunicaProviders.open(device);
      punica = wrapper;
    }
    return wrapper;
  }

  private static MoeConfig config(
      BenchShape shape, BenchWeights weights, int maxTokens, Lora lora) {
    MoeConfig.Builder b =
        MoeConfig.builder(
                shape.hiddenSize(), shape.intermediateSize(), shape.numExperts(), shape.topK())
            .inputDtype(DType.BF16)
            .weightDtype(DType.BF16)
            .quantScheme(weights.scheme())
            .quantizedActivations(weights.quantizedActivations())
            .maxTokens(maxTokens);
    return lora.adapters() > 0
        ? b.lora(new LoraConfig(lora.adapters(), lora.rank())).build()
        : b.build();
  }

  /**
   * Measures one shape over the grid.
   *
   * @param shape the shape
   * @param listener told before each case
   */
  public void run(BenchShape shape, Listener listener) {
    int most = tokens.stream().mapToInt(Integer::intValue).max().orElse(1);
    try (DeviceModel model = new DeviceModel(shape, device)) {
      MoeLayerWeights weights = model.weights(weightKind);
      List<Case> cases = tokens.stream().map(t -> new Case(shape, model, t)).toList();
      for (Lora lora : grid) {
        try (DeviceModel factors = new DeviceModel(shape, device);
            MoeLayer layer =
                MoeLayer.builder(config(shape, weightKind, most, lora), weights)
                    .oracle(oracle)
                    .backend(backend)
                    .device(device)
                    .build()) {
          List<LoraLayer> slots = new ArrayList<>();
          SlotsKey key = new SlotsKey("bench");
          for (int a = 0; a < lora.adapters(); a++) {
            slots.add(factors.adapter(lora.rank()));
          }
          for (Case c : cases) {
            listener.begins(
                shape.name()
                    + " T="
                    + c.tokens
                    + (slots.isEmpty() ? "" : " rank " + lora.rank() + " x " + slots.size()));
            c.measure(layer, factors, slots, key, lora);
          }
        }
      }
    }
  }

  /** One number of tokens: its batches, made once. */
  private final class Case {
    private final BenchShape shape;
    private final int tokens;
    private final DeviceBatch[] batches;
    private final MoeForward[] requests;

    Case(BenchShape shape, DeviceModel model, int tokens) {
      this.shape = shape;
      this.tokens = tokens;
      this.batches = DeviceBatch.rotating(shape, tokens, draws);
      this.requests = new MoeForward[batches.length];
      for (int i = 0; i < batches.length; i++) {
        Tensor output = model.empty(DType.BF16, tokens, shape.hiddenSize());
        requests[i] =
            MoeForward.of(model.hidden(tokens), output)
                .withRouterLogits(model.put(batches[i].logits()));
      }
    }

    void measure(
        MoeLayer layer, DeviceModel memory, List<LoraLayer> slots, SlotsKey key, Lora lora) {
      MoeForward[] all = requests.clone();
      if (!slots.isEmpty()) {
        for (int i = 0; i < all.length; i++) {
          Tensor mapping = memory.put(batches[i].mapping(tokens, slots.size()));
          all[i] =
              all[i].withLora(new DeviceAdapters(key, slots, mapping, DeviceBench.this::punica));
        }
      }
      double micros;
      try (MoeSession session = layer.newSession(tokens)) {
        micros = micros(session, all);
      }
      double bytes =
          Arrays.stream(batches)
              .mapToDouble(b -> b.bytes(shape, weightKind, tokens, lora))
              .average()
              .orElse(0);
      double h = shape.hiddenSize();
      double i = shape.intermediateSize();
      double operations = 6.0 * tokens * shape.topK() * (h * i + lora.rank() * (h + i));
      rows.add(
          new DeviceBenchReport.Row(
              shape.name(),
              tokens,
              lora,
              micros,
              bytes,
              operations,
              DeviceBatch.meanExperts(batches),
              layer.selection().chosenBackend().name()));
    }
  }

  private double micros(MoeSession session, MoeForward[] pass) {
    DeviceStream stream = device.defaultStream();
    Runnable work =
        () -> {
          for (MoeForward f : pass) {
            session.forward(f, stream);
          }
        };
    work.run(); // loads the kernels
    stream.synchronize();
    if (profile) {
      device.profiled(stream, () -> session.forward(pass[0], stream));
      return Double.NaN;
    }
    try (Device.Graph graph =
            device
                .capture(stream, work)
                .orElseThrow(() -> new DeviceException(device.info().id() + " records no graphs"));
        Stopwatch watch = new Stopwatch(device)) {
      boolean rested = restMillis > 0;
      rest();
      double settle = rested ? SETTLE_SECONDS_RESTED : SETTLE_SECONDS;
      long begin = System.nanoTime();
      int warm = 0;
      do {
        graph.launch(stream);
        stream.synchronize();
        warm++;
      } while (System.nanoTime() - begin < settle * 1e9);
      double one = (double) (System.nanoTime() - begin) / warm;
      double sample = rested ? SAMPLE_NANOS_RESTED : SAMPLE_NANOS;
      int replays = (int) Math.clamp(Math.ceil(sample / one), 1, MAX_REPLAYS);
      double[] samples = new double[SAMPLES];
      for (int s = 0; s < SAMPLES; s++) {
        samples[s] = watch.micros(graph, replays) / replays / pass.length;
      }
      Arrays.sort(samples);
      return samples[SAMPLES / 2];
    }
  }

  private void rest() {
    long until = System.nanoTime() + restMillis * 1_000_000L;
    for (long left = until - System.nanoTime(); left > 0; left = until - System.nanoTime()) {
      LockSupport.parkNanos(left);
    }
  }

  /** {@return what was measured so far} */
  public DeviceBenchReport report() {
    return new DeviceBenchReport(device.info(), weightKind, rows, restMillis, null);
  }

  @Override
  public void close() {
    if (punica != null) {
      punica.close();
    }
    device.close();
  }
}
