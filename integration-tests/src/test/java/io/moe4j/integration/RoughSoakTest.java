package io.moe4j.integration;

import static org.assertj.core.api.Assertions.assertThat;

import io.moe4j.api.AdapterException;
import io.moe4j.api.CheckpointException;
import io.moe4j.api.MoeException;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.api.weights.ExpertWeights;
import io.moe4j.api.weights.MoeLayerWeights;
import io.moe4j.api.weights.RouterWeights;
import io.moe4j.api.weights.Weight;
import io.moe4j.backend.cpu.CpuBlockOpsProvider;
import io.moe4j.backend.cpu.CpuDeviceProvider;
import io.moe4j.backend.cpu.CpuExpertsBackend;
import io.moe4j.checkpoint.SafetensorsFile;
import io.moe4j.checkpoint.SafetensorsWriter;
import io.moe4j.lora.AdapterBatch;
import io.moe4j.lora.AdapterRegistry;
import io.moe4j.oracle.BackendCatalog;
import io.moe4j.oracle.MoeForward;
import io.moe4j.oracle.MoeLayer;
import io.moe4j.oracle.MoeOracle;
import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Duration;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.SplittableRandom;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.LongAdder;
import org.jspecify.annotations.Nullable;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/**
 * Everything goes wrong at once, and the process lives: files are cut under layers that are
 * running, a backend throws errors of every kind, threads are interrupted (those of callers and
 * those of the CPU backend), adapters change all the time. A forward either throws what is
 * documented, for a reason that was really given, or every row of its output is right. {@code
 * -Dmoe.soak.seconds=60} sets the duration; the default is 10.
 */
class RoughSoakTest {
  private static final int READERS = 6;
  private static final int SLOTS = 8;
  private static final int ADAPTERS = 6;
  private static final int VERSIONS = 2;
  private static final int MAX_TOKENS = 16;
  private static final double TOLERANCE = 1e-5;

  @TempDir Path dir;

  private final SoakModel model = new SoakModel(ADAPTERS, VERSIONS, SLOTS, MAX_TOKENS);
  private final ConcurrentLinkedQueue<String> problems = new ConcurrentLinkedQueue<>();
  private final ConcurrentLinkedQueue<Thread> readers = new ConcurrentLinkedQueue<>();
  private final LongAdder rows = new LongAdder();
  private final LongAdder cuts = new LongAdder();
  private final LongAdder cutForwards = new LongAdder();
  private final LongAdder faults = new LongAdder();
  private final LongAdder interrupts = new LongAdder();
  private final LongAdder changes = new LongAdder();
  private volatile @Nullable Generation current;

  @Test
  void theProcessLivesAndNoRowIsWrong() throws Exception {
    long seconds = Long.getLong("moe.soak.seconds", 10);
    try (AdapterRegistry registry =
            AdapterRegistry.builder(model.configs()).slotWait(Duration.ofMinutes(2)).build();
        MoeOracle oracle =
            MoeOracle.of(
                BackendCatalog.of(
                    List.of(new CpuExpertsBackend(), new FaultyBackend()),
                    List.of(new CpuDeviceProvider()),
                    List.of(new CpuBlockOpsProvider())));
        Generation steady = new Generation(oracle, "cpu", null);
        Generation faulty = new Generation(oracle, "faulty", null);
        ExecutorService pool = Executors.newFixedThreadPool(READERS + 3)) {
      for (int a = 0; a < ADAPTERS; a++) {
        registry.load(model.adapter(a, 0));
      }
      current = new Generation(oracle, "cpu", dir.resolve("0"));
      long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
      List<Future<?>> work = new ArrayList<>();
      work.add(pool.submit(until(end, 150, () -> cut(oracle))));
      work.add(pool.submit(until(end, 2, this::interrupt)));
      work.add(pool.submit(until(end, 1, new Churn(registry))));
      for (int r = 0; r < READERS; r++) {
        Generation fixed = r % 3 == 0 ? steady : r % 3 == 1 ? faulty : null;
        int seed = r;
        work.add(pool.submit(() -> read(registry, fixed, seed, end)));
      }
      for (Future<?> f : work) {
        f.get(seconds + 120, TimeUnit.SECONDS);
      }
      Objects.requireNonNull(current).close();
      System.out.printf(
          "rough soak: %d s, %d rows checked, %d files cut (%d forwards told so), %d faults of a"
              + " plugin, %d interrupts, %d changes of adapters%n",
          seconds,
          rows.sum(),
          cuts.sum(),
          cutForwards.sum(),
          faults.sum(),
          interrupts.sum(),
          changes.sum());
      assertThat(problems).isEmpty();
      assertThat(rows.sum()).isGreaterThan(100);
      assertThat(cuts.sum()).isPositive();
      assertThat(cutForwards.sum()).isPositive();
      assertThat(faults.sum()).isPositive();
      assertThat(interrupts.sum()).isPositive();
      assertThat(changes.sum()).isPositive();
    }
  }

  private Callable<@Nullable Void> until(long end, long pauseMillis, Callable<?> action) {
    return () -> {
      while (System.nanoTime() < end && problems.size() < 10) {
        action.call();
        TimeUnit.MILLISECONDS.sleep(pauseMillis);
      }
      return null;
    };
  }

  /** The model's layers on one backend, their weights on the heap or in a mapped file. */
  private final class Generation implements AutoCloseable {
    final List<MoeLayer> layers = new ArrayList<>();
    private final @Nullable SafetensorsFile file;

    /** Set before the file is touched: from then on forwards may throw. */
    volatile boolean cut;

    Generation(MoeOracle oracle, String backend, @Nullable Path path) {
      Map<String, Tensor> tensors = new LinkedHashMap<>();
      if (path != null) {
        for (int i = 0; i < SoakModel.LAYERS; i++) {
          collect(i, model.weights(i), tensors);
        }
        SafetensorsWriter.write(path, tensors, Map.of());
      }
      file = path == null ? null : SafetensorsFile.open(path);
      for (int i = 0; i < SoakModel.LAYERS; i++) {
        MoeLayerWeights w = model.weights(i);
        layers.add(
            MoeLayer.builder(model.config, file == null ? w : mapped(i, w, file))
                .oracle(oracle)
                .backend(backend)
                .build());
      }
    }

    @Override
    public void close() {
      layers.forEach(MoeLayer::close);
      if (file != null) {
        file.close();
      }
    }
  }

  private static void collect(int layer, MoeLayerWeights w, Map<String, Tensor> to) {
    to.put(layer + ".router", Objects.requireNonNull(w.router()).weight());
    for (int e = 0; e < w.experts().numExperts(); e++) {
      for (Weight p : w.experts().expert(e).projections()) {
        to.put(layer + "." + e + "." + to.size(), p.plain());
      }
    }
  }

  /** The same tensors, in the order in which they were collected. */
  private static MoeLayerWeights mapped(int layer, MoeLayerWeights w, SafetensorsFile file) {
    List<Tensor> all =
        file.tensors().entrySet().stream()
            .filter(t -> t.getKey().startsWith(layer + "."))
            .map(Map.Entry::getValue)
            .toList();
    List<ExpertWeights.Expert> experts = new ArrayList<>();
    int next = 1;
    for (ExpertWeights.Expert x : w.experts().experts()) {
      int n = x.projections().size();
      List<Tensor> of = all.subList(next, next + n);
      next += n;
      experts.add(
          ExpertWeights.Expert.plain(n == 3 ? of.getFirst() : null, of.get(n - 2), of.get(n - 1)));
    }
    return new MoeLayerWeights(
        new ExpertWeights(experts), new RouterWeights(all.getFirst(), null, null), null, null);
  }

  private final SplittableRandom chance = new SplittableRandom(77);

  /** A new generation takes over, and the old one's file is changed in place under its readers. */
  private @Nullable Void cut(MoeOracle oracle) throws IOException, InterruptedException {
    Generation old = Objects.requireNonNull(current);
    current = new Generation(oracle, "cpu", dir.resolve(Long.toString(cuts.sum() + 1)));
    Path file = dir.resolve(Long.toString(cuts.sum()));
    long size = Files.size(file);
    old.cut = true;
    try (FileChannel channel = FileChannel.open(file, StandardOpenOption.WRITE)) {
      switch (chance.nextInt(4)) {
        case 0 -> channel.truncate(0);
        case 1 -> channel.truncate(chance.nextLong(size));
        case 2 -> channel.truncate(size - 1 - chance.nextLong(64));
        default -> channel.write(java.nio.ByteBuffer.allocate(4096), size);
      }
    }
    cuts.increment();
    TimeUnit.MILLISECONDS.sleep(30);
    old.close();
    Files.delete(file);
    return null;
  }

  private @Nullable Void interrupt() {
    for (Thread t : readers) {
      if (chance.nextInt(4) == 0) {
        t.interrupt();
        interrupts.increment();
      }
    }
    if (interrupts.sum() % 16 == 0) {
      Thread.getAllStackTraces().keySet().stream()
          .filter(t -> t.getName().startsWith("moe4j-cpu-"))
          .forEach(Thread::interrupt);
    }
    return null;
  }

  private final class Churn implements Callable<@Nullable Void> {
    private final AdapterRegistry registry;
    private final SplittableRandom rng = new SplittableRandom(3);

    Churn(AdapterRegistry registry) {
      this.registry = registry;
    }

    @Override
    public @Nullable Void call() {
      registry.replace(model.adapter(rng.nextInt(ADAPTERS), rng.nextInt(VERSIONS)));
      changes.increment();
      return null;
    }
  }

  private @Nullable Void read(
      AdapterRegistry registry, @Nullable Generation fixed, int seed, long end) {
    readers.add(Thread.currentThread());
    SplittableRandom rng = new SplittableRandom(seed);
    while (System.nanoTime() < end && problems.size() < 10) {
      int tokens = 1 + rng.nextInt(MAX_TOKENS);
      int[] adapter = rng.ints(tokens, -1, ADAPTERS).toArray();
      List<@Nullable String> names = new ArrayList<>();
      for (int a : adapter) {
        names.add(a < 0 ? null : SoakModel.name(a));
      }
      try (AdapterBatch batch = registry.newBatch()) {
        batch.reset(names);
        for (int layer = 0; layer < SoakModel.LAYERS; layer++) {
          forward(fixed, batch, layer, rng, adapter);
        }
      } catch (AdapterException e) {
        if (!String.valueOf(e.getMessage()).contains("interrupt")) {
          problems.add("reader: " + e);
        }
      } catch (RuntimeException | Error e) {
        problems.add("reader: " + e);
      }
      if (Thread.interrupted()) {
        continue; // this test's own doing
      }
    }
    return null;
  }

  private void forward(
      @Nullable Generation fixed,
      AdapterBatch batch,
      int layer,
      SplittableRandom rng,
      int[] adapter) {
    Generation of = fixed != null ? fixed : Objects.requireNonNull(current);
    int tokens = adapter.length;
    int[] token = rng.ints(tokens, 0, SoakModel.TOKENS).toArray();
    float[] hidden = new float[tokens * SoakModel.HIDDEN];
    for (int t = 0; t < tokens; t++) {
      System.arraycopy(
          model.input(layer, token[t]), 0, hidden, t * SoakModel.HIDDEN, SoakModel.HIDDEN);
    }
    float[] output = new float[hidden.length];
    try {
      of.layers
          .get(layer)
          .forward(
              MoeForward.of(
                      Tensor.ofFloats(hidden, tokens, SoakModel.HIDDEN),
                      Tensor.ofFloats(output, tokens, SoakModel.HIDDEN))
                  .withLora(batch.context(layer)));
    } catch (CheckpointException e) {
      cutForwards.increment();
      if (!of.cut) {
        problems.add("nobody touched this file: " + e);
      }
      return;
    } catch (IllegalStateException e) {
      if (!of.cut) {
        problems.add("nobody closed this layer: " + e);
      }
      return;
    } catch (MoeException e) {
      faults.increment();
      if (!String.valueOf(e.getMessage()).contains("backend faulty from ")
          || !String.valueOf(e.getMessage()).contains("of this test")) {
        problems.add("not of the plugin, or does not name it: " + e);
      }
      return;
    }
    for (int t = 0; t < tokens; t++) {
      double best = Double.POSITIVE_INFINITY;
      for (int v = 0; v < (adapter[t] < 0 ? 1 : VERSIONS); v++) {
        double[] expected = model.expected(layer, adapter[t], v, token[t]);
        best = Math.min(best, distance(output, t * SoakModel.HIDDEN, expected));
      }
      if (!(best <= TOLERANCE)) {
        problems.add("layer %d adapter %d: off by %s".formatted(layer, adapter[t], best));
      }
      rows.increment();
    }
  }

  private static double distance(float[] actual, int at, double[] expected) {
    double difference = 0;
    double norm = 0;
    for (int i = 0; i < expected.length; i++) {
      double d = actual[at + i] - expected[i];
      difference += d * d;
      norm += expected[i] * expected[i];
    }
    return Math.sqrt(difference / norm);
  }
}
