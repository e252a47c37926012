package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.ffi.Affinity;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;
import java.util.concurrent.locks.ReentrantLock;
import org.jspecify.annotations.Nullable;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The processor's threads, shared by every layer: the caller plus parked workers. A region is a
 * number of independent tiles that members take one by one; {@link #run} returns when all are done.
 *
 * <p>One region runs at a time. A caller that finds the team busy with another forward does its
 * tiles alone: no waiting on each other, no more runnable threads than processors and callers.
 * Workers spin for a moment after a region, because the next one of the same forward follows at
 * once, and then park. Nothing is allocated per region.
 */
final class ThreadTeam {
  /** How many threads compute, the caller included; default: the processors of this JVM. */
  static final String THREADS_PROPERTY = "moe4j.cpu.threads";

  /**
   * Whether each worker stays on a processor of its own, those of one NUMA node first; default:
   * false. The caller's thread stays the caller's.
   */
  static final String PIN_PROPERTY = "moe4j.cpu.pin";

  private static final Logger LOG = LoggerFactory.getLogger(ThreadTeam.class);
  private static final long SPIN_NANOS = 100_000;

  /** A body of work. */
  interface Region {
    /**
     * Does one tile. Called once for each index, by any member.
     *
     * @param index {@code 0..tiles-1}
     * @param member who does it, {@code 0..size-1}; members run concurrently, so scratch is per
     *     member
     */
    void tile(int index, int member);
  }

  /** Beyond this, threads cost more than they compute. */
  static final int MAX_THREADS = 1024;

  private static volatile @Nullable ThreadTeam shared;

  /** Set in {@link #state} while workers may still join the current region. */
  private static final long OPEN = 1L << 31;

  /** Spins before a caller that waits for a worker's last tile gives its processor away. */
  private static final int YIELD_AFTER = 1 << 16;

  private static final long PAUSE_NANOS = 20_000;

  private final ReentrantLock owner = new ReentrantLock();
  private final Thread[] workers;
  private final AtomicInteger next = new AtomicInteger();

  /** Upper half: the region's number; then {@link #OPEN}; low bits: workers inside. */
  private final AtomicLong state = new AtomicLong();

  private @Nullable Region region;
  private int tiles;
  private volatile @Nullable Throwable failure;

  ThreadTeam(int size) {
    this(size, List.of());
  }

  /**
   * @param size members, the caller included
   * @param processors where members stay, the caller's first; empty = anywhere
   */
  ThreadTeam(int size, List<Integer> processors) {
    workers = new Thread[size - 1];
    for (int i = 0; i < workers.length; i++) {
      int member = i + 1;
      workers[i] =
          Thread.ofPlatform()
              .name("moe4j-cpu-" + member)
              .daemon(true)
              .unstarted(() -> {
                stay(processors, member);
                work(member);
              });
      workers[i].start();
    }
  }

  /**
   * {@return the team of this JVM, started at first use}
   *
   * @throws IllegalArgumentException if {@value #THREADS_PROPERTY} is no number of threads
   */
  static ThreadTeam shared() {
    ThreadTeam team = shared;
    return team != null ? team : start();
  }

  private static synchronized ThreadTeam start() {
    ThreadTeam team = shared;
    if (team == null) {
      team =
          new ThreadTeam(
              configuredThreads(System.getProperty(THREADS_PROPERTY)), configuredProcessors());
      shared = team;
    }
    return team;
  }

  private static void stay(List<Integer> processors, int member) {
    if (!processors.isEmpty() && !Affinity.pin(processors.get(member % processors.size()))) {
      LOG.warn("The system does not keep thread {} of the CPU backend on its processor", member);
    }
  }

  private static List<Integer> configuredProcessors() {
    String text = System.getProperty(PIN_PROPERTY, "false");
    if (!text.equals("true") && !text.equals("false")) {
      throw new IllegalArgumentException(
          "-D" + PIN_PROPERTY + " is \"" + text + "\", accepted: true, false");
    }
    return text.equals("true") && System.getProperty("os.name", "").startsWith("Linux")
        ? Affinity.processorsByNode()
        : List.of();
  }

  static int configuredThreads(@Nullable String property) {
    if (property == null) {
      return Math.min(MAX_THREADS, Runtime.getRuntime().availableProcessors());
    }
    int n;
    try {
      n = Integer.parseInt(property.strip());
    } catch (NumberFormatException e) {
      n = 0;
    }
    if (n < 1 || n > MAX_THREADS) {
      throw new IllegalArgumentException(
          "-D" + THREADS_PROPERTY + " is \"" + property + "\", must be 1.." + MAX_THREADS);
    }
    return n;
  }

  /** {@return members, the caller included} */
  int size() {
    return workers.length + 1;
  }

  /**
   * Runs all tiles of a region and returns when they are done.
   *
   * @param body the work
   * @param count tiles
   */
  void run(Region body, int count) {
    if (workers.length == 0 || count <= 1 || !owner.tryLock()) {
      for (int i = 0; i < count; i++) {
        body.tile(i, 0);
      }
      return;
    }
    try {
      region = body;
      tiles = count;
      next.set(0);
      failure = null;
      state.set((((state.get() >>> 32) + 1) << 32) | OPEN);
      for (Thread w : workers) {
        LockSupport.unpark(w);
      }
      take(body, count, 0);
      long left = state.addAndGet(-OPEN);
      for (int spins = 0; (left & (OPEN - 1)) != 0; left = state.get()) {
        if (++spins < YIELD_AFTER) {
          Thread.onSpinWait();
        } else {
          LockSupport.parkNanos(PAUSE_NANOS);
        }
      }
      region = null;
      rethrow(failure);
    } finally {
      owner.unlock();
    }
  }

  /**
   * Waits, inside a tile, for tiles of the same region with smaller indexes: somebody has them, and
   * they wait for nobody. Returns early when one of the region's tiles has thrown; {@link #run}
   * will throw then, whatever the waiting tile does.
   *
   * @param left counts what is still to be done
   * @param i which counter
   */
  void awaitZero(AtomicIntegerArray left, int i) {
    for (int spins = 0; left.get(i) > 0 && failure == null; ) {
      if (++spins < YIELD_AFTER) {
        Thread.onSpinWait();
      } else {
        LockSupport.parkNanos(PAUSE_NANOS);
      }
    }
  }

  private static void rethrow(@Nullable Throwable t) {
    if (t instanceof RuntimeException e) {
      throw e;
    }
    if (t instanceof Error e) {
      throw e;
    }
  }

  private void take(@Nullable Region body, int count, int member) {
    if (body == null) {
      return;
    }
    try {
      for (int i = next.getAndIncrement(); i < count; i = next.getAndIncrement()) {
        body.tile(i, member);
      }
      settle();
    } catch (RuntimeException | Error t) {
      next.set(count);
      failure = t;
    }
  }

  /**
   * If a tile has read a page of a file that is gone, HotSpot throws the error at the thread's next
   * stop, not at the load. A call into the virtual machine is one: here the error still belongs to
   * its region.
   */
  private void settle() {
    if (Thread.holdsLock(workers)) {
      throw new IllegalStateException("nobody locks this");
    }
  }

  private void work(int member) {
    long seen = 0;
    while (true) {
      try {
        seen = workOnce(member, seen);
      } catch (Error e) {
        // A worker outlives whatever reaches it between two regions.
        LOG.warn("A worker of the CPU backend goes on after {}", e.toString());
      }
    }
  }

  /** Waits for a region that it has not seen, and takes part in it. */
  private long workOnce(int member, long before) {
    long seen = before;
    while (true) {
      long deadline = System.nanoTime() + SPIN_NANOS;
      long s = state.get();
      while ((s >>> 32) == seen || (s & OPEN) == 0) {
        if (System.nanoTime() < deadline) {
          Thread.onSpinWait();
        } else {
          LockSupport.park(this);
          // Threads are for whoever finds them, and one that is interrupted does not park again.
          if (Thread.interrupted()) {
            LOG.debug("A worker of the CPU backend was interrupted; that means nothing to it");
          }
        }
        s = state.get();
      }
      if (state.compareAndSet(s, s + 1)) {
        seen = s >>> 32;
        try {
          take(region, tiles, member);
        } finally {
          state.decrementAndGet(); // or the caller waits for ever
        }
        return seen;
      }
    }
  }
}
