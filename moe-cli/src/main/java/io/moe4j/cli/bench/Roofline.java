package io.moe4j.cli.bench;

import io.moe4j.api.device.DeviceProvider.PeakLoop;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;

/**
 * This machine's limits, sampled again and again between the measured cases, because a shared
 * machine is never the same twice: read bandwidth of memory that no cache holds, single precision
 * multiply-adds per second and, where there are units for them, those of bf16. Not thread-safe.
 */
public final class Roofline implements AutoCloseable {
  /** Bytes read by one sample: far more than any last-level cache. */
  private static final long BUFFER_BYTES = 512L << 20;

  private static final long FMA_ITERATIONS = 2_000_000;
  private static final long BF16_ROUNDS = 200_000;
  private static final int WARM_UP_ROUNDS = 6;

  private final HostProbe probe = HostProbe.best();
  private final int threads;
  private final Arena arena = Arena.ofShared();
  private final List<MemorySegment> parts;
  private final ExecutorService pool;
  private final List<Double> gigabytes = new ArrayList<>();
  private final List<Double> gigaflops = new ArrayList<>();
  private final @Nullable PeakLoop bf16;
  private final List<Double> bf16Gigaflops = new ArrayList<>();

  /**
   * Takes the memory, and runs the loops until they are compiled.
   *
   * @param threads how many threads the layers under test use
   * @param bf16 multiply-adds of bf16, null where the machine has no units for them
   */
  public Roofline(int threads, @Nullable PeakLoop bf16) {
    this.threads = threads;
    this.bf16 = bf16;
    long part = BUFFER_BYTES / threads / 64 * 64;
    parts =
        IntStream.range(0, threads).mapToObj(_ -> arena.allocate(part, 64).fill((byte) 1)).toList();
    pool =
        Executors.newFixedThreadPool(
            threads,
            task -> {
              Thread thread = new Thread(task, "roofline");
              thread.setDaemon(true);
              return thread;
            });
    for (int i = 0; i < WARM_UP_ROUNDS; i++) {
      sample();
    }
    gigabytes.clear();
    gigaflops.clear();
    bf16Gigaflops.clear();
  }

  /** Measures both limits once: some tens of milliseconds. */
  public void sample() {
    long bytes = parts.getFirst().byteSize() * threads;
    long readNanos = all(t -> probe.read(parts.get(t)));
    long fmaNanos = all(_ -> probe.multiplyAdd(FMA_ITERATIONS));
    gigabytes.add((double) bytes / readNanos);
    gigaflops.add((double) FMA_ITERATIONS * probe.flopsPerIteration() * threads / fmaNanos);
    PeakLoop loop = bf16;
    if (loop != null) {
      double[] flops = new double[threads];
      long nanos = all(t -> flops[t] = loop.run(BF16_ROUNDS));
      bf16Gigaflops.add(flops[0] * threads / nanos);
    }
  }

  private interface Work {
    double run(int thread);
  }

  /** {@return nanoseconds from the start of the first to the end of the last} */
  private long all(Work work) {
    List<Callable<Double>> tasks = new ArrayList<>();
    for (int t = 0; t < threads; t++) {
      int thread = t;
      tasks.add(() -> work.run(thread));
    }
    long start = System.nanoTime();
    try {
      double sum = 0;
      for (Future<Double> f : pool.invokeAll(tasks)) {
        sum += f.get();
      }
      long nanos = System.nanoTime() - start;
      if (Double.isNaN(
          sum)) { // never; but the sum must be used, or there would be nothing to measure
        throw new IllegalStateException("the processor cannot add");
      }
      return nanos;
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted while measuring the machine's limits", e);
    } catch (ExecutionException e) {
      throw new IllegalStateException("measuring the machine's limits failed", e.getCause());
    }
  }

  /** {@return what was sampled so far} */
  public Limits limits() {
    return new Limits(
        threads,
        probe.name(),
        Spread.of(gigabytes),
        Spread.of(gigaflops),
        bf16 == null ? null : new Bf16(bf16.units(), Spread.of(bf16Gigaflops)));
  }

  @Override
  public void close() {
    pool.shutdownNow();
    arena.close();
  }

  /**
   * Samples of one quantity.
   *
   * @param median the middle one
   * @param min the least
   * @param max the largest
   * @param count how many
   */
  public record Spread(double median, double min, double max, int count) {
    static Spread of(List<Double> samples) {
      double[] sorted = samples.stream().mapToDouble(Double::doubleValue).sorted().toArray();
      int n = sorted.length;
      if (n == 0) {
        throw new IllegalStateException("nothing was sampled");
      }
      double median = n % 2 == 1 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
      return new Spread(median, sorted[0], sorted[n - 1], n);
    }
  }

  /**
   * Multiply-adds of bf16.
   *
   * @param units which ones
   * @param gflops as 1e9 operations per second
   */
  public record Bf16(String units, Spread gflops) {}

  /**
   * The limits of a run.
   *
   * @param threads threads that ran at once
   * @param how vector width
   * @param readGbps gigabytes (1e9) read per second
   * @param gflops f32 multiply-adds, as 1e9 operations per second
   * @param bf16 those of bf16, null where the machine has no units for them
   */
  public record Limits(
      int threads, String how, Spread readGbps, Spread gflops, @Nullable Bf16 bf16) {
    /** {@return the multiply-adds that hidden states of bf16, or others, can have at best} */
    private double peak(boolean ofBf16) {
      return ofBf16 && bf16 != null
          ? Math.max(bf16.gflops().median(), gflops.median())
          : gflops.median();
    }

    /** {@return the least time that reading this much takes} */
    double bytesNanos(double bytes) {
      return bytes / readGbps.median();
    }

    /** {@return the least time of so many additions and multiplications} */
    double flopsNanos(double flops, boolean ofBf16) {
      return flops / peak(ofBf16);
    }
  }
}
