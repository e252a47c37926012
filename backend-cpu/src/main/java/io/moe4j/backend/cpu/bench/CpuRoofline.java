package io.moe4j.backend.cpu.bench;

import io.moe4j.backend.cpu.kernel.KernelSelection;
import io.moe4j.backend.cpu.kernel.Limits;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.concurrent.BrokenBarrierException;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.function.IntConsumer;

/**
 * The two limits of a processor: how fast all threads together read memory that no cache holds, and
 * how many f32 multiply-adds they retire. Both swing on shared machines, so sample them in the same
 * run as what is measured against them, a few times in between. A sample takes some milliseconds.
 * Not thread-safe.
 */
public final class CpuRoofline implements AutoCloseable {
  private static final long BUFFER = 256L << 20;
  private static final int FMA_ROUNDS = 400_000;
  private static final int WARM_UP = 12;

  private final int threads;
  private final Arena arena = Arena.ofShared();
  private final MemorySegment buffer;
  private final ExecutorService pool;
  private final Limits limits;
  private int part;
  private volatile double sink;

  /**
   * Takes 256 MB and warms the loops up.
   *
   * @param threads at least 1
   */
  public CpuRoofline(int threads) {
    this.threads = threads;
    buffer = arena.allocate(BUFFER, 4096);
    buffer.fill((byte) 1);
    pool =
        Executors.newFixedThreadPool(
            threads,
            r -> {
              Thread t = new Thread(r, "moe4j-roofline");
              t.setDaemon(true);
              return t;
            });
    limits = KernelSelection.limits();
    for (int i = 0; i < WARM_UP; i++) {
      readGigabytesPerSecond();
      fmaGigaflops();
    }
  }

  /** {@return one sample of read bandwidth, 10^9 bytes a second} */
  public double readGigabytesPerSecond() {
    long quarter = BUFFER / 4;
    long base = (part++ % 4) * quarter;
    long share = quarter / threads & -4096L;
    double seconds = timed(i -> sink = limits.read(buffer, base + i * share, share));
    return share * threads / seconds / 1e9;
  }

  /** {@return one sample of f32 multiply-add speed, 10^9 operations a second, two per fma} */
  public double fmaGigaflops() {
    double seconds = timed(i -> sink = limits.fma(FMA_ROUNDS));
    return limits.flopsPerRound() * FMA_ROUNDS * threads / seconds / 1e9;
  }

  private double timed(IntConsumer work) {
    CyclicBarrier start = new CyclicBarrier(threads);
    long[] from = new long[threads];
    long[] to = new long[threads];
    Future<?>[] done = new Future<?>[threads];
    for (int i = 0; i < threads; i++) {
      int who = i;
      done[i] =
          pool.submit(() -> {
            await(start);
            from[who] = System.nanoTime();
            work.accept(who);
            to[who] = System.nanoTime();
          });
    }
    try {
      for (Future<?> f : done) {
        f.get();
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted", e);
    } catch (java.util.concurrent.ExecutionException e) {
      throw new IllegalStateException(e.getCause());
    }
    long first = Arrays.stream(from).min().orElseThrow();
    long last = Arrays.stream(to).max().orElseThrow();
    return Math.max(1, last - first) / 1e9;
  }

  private static void await(CyclicBarrier barrier) {
    try {
      barrier.await();
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new IllegalStateException("interrupted", e);
    } catch (BrokenBarrierException e) {
      throw new IllegalStateException(e);
    }
  }

  @Override
  public void close() {
    pool.shutdownNow();
    pool.close();
    arena.close();
  }
}
