package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.AdapterException;
import io.moe4j.api.config.GateUpLayout;
import io.moe4j.api.spi.ExpertsBackend;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.lora.AdapterStats;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.atomic.LongAdder;
import java.util.function.BooleanSupplier;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;

/**
 * Eight threads of forwards while two others load, replace, unload, pin and unpin 64 adapters over
 * 8 slots and a host cache that holds 48 of them. Every row of every output is checked against
 * {@link SoakModel}'s expectation for its adapter in a version that was current at some time during
 * the batch; all rows of one adapter in one batch must be of one version. {@code
 * -Dmoe.soak.seconds=60} sets the duration; the default is 10.
 */
class SoakTest {
  private static final int READERS = 8;
  private static final int WRITERS = 2;
  private static final int SLOTS = 8;
  private static final int HOST_CACHE = 48;
  private static final int ADAPTERS = 64;
  private static final int VERSIONS = 4;
  private static final int MAX_TOKENS = 24;
  private static final int PATIENCE_SECONDS = 120;

  /** Adapters that one batch draws from; with one pin a writer, a batch always fits the slots. */
  private static final int MAX_MIX = SLOTS - WRITERS;

  /** f32 against double, relative to the row's norm; other versions and adapters are 1e-2 away. */
  private static final double TOLERANCE = 1e-5;

  private static final double APART = 1e-2;

  private final SoakModel model = new SoakModel(ADAPTERS, VERSIONS, SLOTS, MAX_TOKENS);

  // How often each adapter was changed; its version is this modulo VERSIONS. Written by the one
  // writer that owns the adapter: before the registry has the change in starting, after in done.
  private final AtomicIntegerArray starting = new AtomicIntegerArray(ADAPTERS);
  private final AtomicIntegerArray done = new AtomicIntegerArray(ADAPTERS);
  private final ConcurrentLinkedQueue<String> problems = new ConcurrentLinkedQueue<>();
  private final LongAdder batches = new LongAdder();
  private final LongAdder mixedBatches = new LongAdder();
  private final LongAdder rows = new LongAdder();
  private final LongAdder changes = new LongAdder();
  private final LongAdder notLoaded = new LongAdder();

  @Test
  void everyRowIsRightUnderChurn() throws Exception {
    expectationsAreTellable();
    churn(Long.getLong("moe.soak.seconds", 10));
  }

  /** What the test does, for so many seconds. */
  void churn(long seconds) throws Exception {
    List<ExpertsBackend> backends =
        List.of(new CpuExpertsBackend(), new ComposableBackend(GateUpLayout.HALVES, false));
    try (AdapterRegistry registry =
            AdapterRegistry.builder(model.configs())
                .maxCpuLoras(HOST_CACHE)
                .slotWait(Duration.ofMinutes(2))
                .build();
        MoeOracle oracle =
            MoeOracle.of(
                BackendCatalog.of(
                    backends,
                    List.of(new CpuDeviceProvider()),
                    List.of(new CpuBlockOpsProvider())));
        Layers fused = new Layers(oracle, "cpu");
        Layers composed = new Layers(oracle, "composable-halves");
        ExecutorService pool = Executors.newFixedThreadPool(READERS + WRITERS)) {
      long begin = System.nanoTime();
      // So long, and until everything has happened that is asked for below: machines can be slow.
      BooleanSupplier goesOn =
          () -> {
            long elapsed = System.nanoTime() - begin;
            return elapsed < TimeUnit.SECONDS.toNanos(seconds)
                || (problems.isEmpty()
                    && !isEnough(registry.stats())
                    && elapsed < TimeUnit.SECONDS.toNanos(seconds + PATIENCE_SECONDS));
          };
      List<Future<?>> work = new ArrayList<>();
      for (int w = 0; w < WRITERS; w++) {
        int writer = w;
        work.add(pool.submit(() -> write(registry, writer, goesOn)));
      }
      for (int r = 0; r < READERS; r++) {
        int reader = r;
        work.add(
            pool.submit(() -> read(registry, reader % 4 == 3 ? composed : fused, reader, goesOn)));
      }
      for (Future<?> f : work) {
        f.get(seconds + 300, TimeUnit.SECONDS);
      }
      AdapterStats stats = registry.stats();
      System.out.printf(
          "soak: %d s, %d batches (%d mixed), %d rows checked, %d changes, %d refused as not loaded,"
              + " %s%n",
          seconds,
          batches.sum(),
          mixedBatches.sum(),
          rows.sum(),
          changes.sum(),
          notLoaded.sum(),
          stats);
      assertThat(problems).isEmpty();
      assertThat(stats.leasedSlots()).isZero();
      assertThat(isEnough(stats)).as("%s", stats).isTrue();
    }
  }

  /** Whether rows of mixed batches were compared while adapters came and went. */
  private boolean isEnough(AdapterStats stats) {
    return rows.sum() > 100
        && mixedBatches.sum() > 0
        && changes.sum() > HOST_CACHE
        && stats.evictions() > 0
        && stats.hostEvictions() > 0
        && stats.hits() > 0;
  }

  /** Both layers of the model on one backend. */
  private final class Layers implements AutoCloseable {
    final List<MoeLayer> layers = new ArrayList<>();

    Layers(MoeOracle oracle, String backend) {
      for (int i = 0; i < SoakModel.LAYERS; i++) {
        layers.add(
            MoeLayer.builder(model.config, model.weights(i))
                .oracle(oracle)
                .backend(backend)
                .build());
      }
    }

    @Override
    public void close() {
      layers.forEach(MoeLayer::close);
    }
  }

  /** The test could not fail if a wrong adapter or version gave nearly the same row. */
  private void expectationsAreTellable() {
    for (int layer = 0; layer < SoakModel.LAYERS; layer++) {
      for (int t = 0; t < SoakModel.TOKENS; t++) {
        double[] base = model.expected(layer, -1, 0, t);
        double[] previous = base;
        for (int a = 0; a < ADAPTERS; a++) {
          for (int v = 0; v < VERSIONS; v++) {
            double[] row = model.expected(layer, a, v, t);
            assertThat(distance(row, base)).isGreaterThan(APART);
            assertThat(distance(row, previous)).isGreaterThan(APART);
            previous = row;
          }
        }
      }
    }
  }

  private @Nullable Void write(AdapterRegistry registry, int writer, BooleanSupplier goesOn)
      throws InterruptedException {
    SplittableRandom rng = new SplittableRandom(1000 + writer);
    String pinned = null;
    while (goesOn.getAsBoolean()) {
      int a = rng.nextInt(ADAPTERS / WRITERS) * WRITERS + writer;
      String name = SoakModel.name(a);
      try {
        int action = rng.nextInt(8);
        if (action == 0) {
          registry.unload(name);
        } else if (action == 1) {
          if (pinned != null) {
            registry.unpin(pinned);
          }
          pinned = null;
          registry.pin(name);
          pinned = name;
        } else {
          int next = starting.incrementAndGet(a);
          if (registry.names().contains(name)) {
            registry.replace(model.adapter(a, next % VERSIONS));
          } else {
            registry.load(model.adapter(a, next % VERSIONS));
          }
          done.set(a, next);
        }
        changes.increment();
      } catch (AdapterException e) {
        // Unloaded meanwhile: the other writer needed room in the host cache. Whatever was started
        // is not there; the next change counts on from it.
        done.set(a, starting.get(a));
        if (!String.valueOf(e.getMessage()).contains("not loaded")
            && !String.valueOf(e.getMessage()).contains("was unloaded")) {
          problems.add("writer: " + e.getMessage());
        }
        if (name.equals(pinned) || !registry.names().contains(String.valueOf(pinned))) {
          pinned = null;
        }
      }
      TimeUnit.MICROSECONDS.sleep(200);
    }
    return null;
  }

  private @Nullable Void read(
      AdapterRegistry registry, Layers layers, int reader, BooleanSupplier goesOn) {
    SplittableRandom rng = new SplittableRandom(reader);
    AdapterBatch batch = registry.newBatch();
    while (goesOn.getAsBoolean() && problems.size() < 10) {
      int tokens = 1 + rng.nextInt(MAX_TOKENS);
      int[] mix = rng.ints(1 + rng.nextInt(MAX_MIX), -1, ADAPTERS).toArray();
      int[] adapter = new int[tokens];
      int[] before = new int[tokens];
      List<@Nullable String> names = new ArrayList<>();
      for (int t = 0; t < tokens; t++) {
        adapter[t] = mix[rng.nextInt(mix.length)];
        names.add(adapter[t] < 0 ? null : SoakModel.name(adapter[t]));
        before[t] = adapter[t] < 0 ? 0 : done.get(adapter[t]);
      }
      try {
        batch.reset(names);
      } catch (AdapterException e) {
        String why = String.valueOf(e.getMessage());
        if (why.contains("not loaded") || why.contains("was unloaded")) {
          notLoaded.increment();
        } else {
          problems.add("reader: " + why);
        }
        continue;
      }
      try {
        batches.increment();
        if (batch.numAdapters() > 1) {
          mixedBatches.increment();
        }
        for (int layer = 0; layer < SoakModel.LAYERS; layer++) {
          forward(layers.layers.get(layer), batch, layer, rng, adapter, before);
        }
      } finally {
        batch.release();
      }
    }
    batch.close();
    return null;
  }

  private void forward(
      MoeLayer moe,
      AdapterBatch batch,
      int layer,
      SplittableRandom rng,
      int[] adapter,
      int[] before) {
    int tokens = adapter.length;
    int[] token = rng.ints(tokens, 0, SoakModel.TOKENS).toArray();
    float[] hidden = new float[tokens * SoakModel.HIDDEN];
    for (int t = 0; t < tokens; t++) {
      System.arraycopy(
          model.input(layer, token[t]), 0, hidden, t * SoakModel.HIDDEN, SoakModel.HIDDEN);
    }
    float[] output = new float[hidden.length];
    moe.forward(
        MoeForward.of(
                Tensor.ofFloats(hidden, tokens, SoakModel.HIDDEN),
                Tensor.ofFloats(output, tokens, SoakModel.HIDDEN))
            .withLora(batch.context(layer)));
    int[] seen = new int[ADAPTERS];
    java.util.Arrays.fill(seen, -1);
    for (int t = 0; t < tokens; t++) {
      double[] row = new double[SoakModel.HIDDEN];
      for (int h = 0; h < row.length; h++) {
        row[h] = output[t * SoakModel.HIDDEN + h];
      }
      int a = adapter[t];
      int version = -1;
      int latest = a < 0 ? 0 : starting.get(a);
      for (int change = before[t]; change <= latest && version < 0; change++) {
        if (distance(row, model.expected(layer, a, change % VERSIONS, token[t])) <= TOLERANCE) {
          version = change % VERSIONS;
        }
      }
      if (version < 0) {
        problems.add(
            "%s layer %d token %d adapter %d: no version of changes %d..%d gives this row (base %s)"
                .formatted(
                    moe,
                    layer,
                    token[t],
                    a,
                    before[t],
                    latest,
                    distance(row, model.expected(layer, -1, 0, token[t]))));
      } else if (a >= 0 && seen[a] >= 0 && seen[a] != version) {
        problems.add("adapter " + a + " has versions " + seen[a] + " and " + version + " at once");
      } else if (a >= 0) {
        seen[a] = version;
      }
      rows.increment();
    }
  }

  private static double distance(double[] actual, double[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
      norm += expected[i] * expected[i];
    }
    return Math.sqrt(difference / norm);
  }
}
