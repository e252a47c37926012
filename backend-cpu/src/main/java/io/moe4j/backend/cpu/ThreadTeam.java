package io.moe4j.backend.cpu;

import io.moe4j.backend.cpu.ffi.Affinity;
import io.moe4j.backend.cpu.ffi.Affinity.Place;
import io.moe4j.backend.cpu.options.CpuOptions;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
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
 * tiles alone: no waiting on each other, no more runnable threads than members and callers. Workers
 * spin for a moment after a region, because the next one of the same forward follows at once, and
 * then park. Nothing is allocated per region.
 *
 * <p>A pinned team on several NUMA nodes is a team for each: a region may say which tiles are whose
 * (their weights are in that node's memory). Members do their own node's tiles, then what is left
 * of another's.
 */
final class ThreadTeam {
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

  /**
   * Which team.
   *
   * @param threads members
   * @param pinned whether workers stay on their processors
   */
  private record Kind(int threads, boolean pinned) {}

  /** Those that layers share; started at first use. */
  private static final Map<Kind, ThreadTeam> TEAMS = new ConcurrentHashMap<>();

  /** Set in {@link #state} while workers may still join the current region. */
  private static final long OPEN = 1L << 31;

  /** Spins before a caller that waits for a worker's last tile gives its processor away. */
  private static final int YIELD_AFTER = 1 << 16;

  private static final long PAUSE_NANOS = 20_000;

  /** How long the caller waits for a node that does nothing before it does that node's tiles. */
  private static final long PATIENCE_NANOS = 50_000_000;

  /** Counters that different nodes count stand two cache lines apart. */
  private static final int APART = 32;

  private final ReentrantLock owner = new ReentrantLock();
  private final Thread[] workers;

  /** By member, {@code 0..nodes-1}. */
  private final int[] node;

  private final int nodes;
  private final List<Place> places;

  /** The next tile of each queue, one every {@link #APART}. */
  private final AtomicIntegerArray next;

  /** By worker: 1 while it is parked or about to be. */
  private final AtomicIntegerArray parked;

  /** Behind the last tile of the only queue. */
  private final int[] one = new int[1];

  /** Upper half: the region's number; then {@link #OPEN}; low bits: workers inside. */
  private final AtomicLong state = new AtomicLong();

  private @Nullable Region region;

  /** Behind each queue's last tile; tiles of a queue follow those of the queue before. */
  private int[] ends = one;

  /** Whether workers leave other nodes' tiles alone. */
  private boolean strict;

  private volatile @Nullable Throwable failure;

  ThreadTeam(int size) {
    this(size, List.of());
  }

  /**
   * @param size members, the caller included
   * @param places where members stay, the caller's first; empty = anywhere
   */
  ThreadTeam(int size, List<Place> places) {
    this.places = places;
    node = new int[size];
    int[] numbers = places.stream().limit(size).mapToInt(Place::node).distinct().toArray();
    nodes = Math.max(1, numbers.length);
    for (int m = 0; m < size && nodes > 1; m++) {
      node[m] = indexOf(numbers, places.get(m % places.size()).node());
    }
    next = new AtomicIntegerArray(nodes * APART);
    parked = new AtomicIntegerArray(size);
    workers = new Thread[size - 1];
    for (int i = 0; i < workers.length; i++) {
      int member = i + 1;
      workers[i] =
          Thread.ofPlatform()
              .name("moe4j-cpu-" + member)
              .daemon(true)
              .unstarted(() -> {
                stay(member);
                work(member);
              });
      workers[i].start();
    }
  }

  private static int indexOf(int[] numbers, int number) {
    int i = 0;
    while (numbers[i] != number) {
      i++;
    }
    return i;
  }

  /** {@return the team that layers with such options share, started at first use} */
  static ThreadTeam of(CpuOptions options) {
    int threads =
        options.threads() > 0
            ? options.threads()
            : Math.min(CpuOptions.MAX_THREADS, Runtime.getRuntime().availableProcessors());
    return TEAMS.computeIfAbsent(
        new Kind(threads, options.pinned()),
        k -> new ThreadTeam(k.threads(), k.pinned() ? everyPlace() : List.of()));
  }

  private void stay(int member) {
    int processor = places.isEmpty() ? -1 : places.get(member % places.size()).processor();
    if (processor >= 0 && !Affinity.pin(processor)) {
      LOG.warn("The system does not keep thread {} of the CPU backend on its processor", member);
    }
  }

  private static List<Place> everyPlace() {
    if (!System.getProperty("os.name", "").startsWith("Linux")) {
      return List.of();
    }
    try {
      return Affinity.places();
    } catch (LinkageError e) { // native access is denied, or the C library is another one
      LOG.warn("Threads of the CPU backend are not pinned: {}", String.valueOf(e.getCause()));
      return List.of();
    }
  }

  /** {@return members, the caller included} */
  int size() {
    return workers.length + 1;
  }

  /** {@return how many threads, and whether they are pinned, in words} */
  String description() {
    return size()
        + (places.size() < size() ? "" : ", each worker on a processor of its own")
        + (nodes > 1 ? ", on " + nodes + " NUMA nodes" : "");
  }

  /** {@return NUMA nodes that a pinned team has members on; 1 for any other team} */
  int nodes() {
    return nodes;
  }

  /**
   * Runs all tiles of a region and returns when they are done. They are begun in order.
   *
   * @param body the work
   * @param count tiles
   */
  void run(Region body, int count) {
    if (workers.length == 0 || count <= 1 || !owner.tryLock()) {
      alone(body, count);
      return;
    }
    try {
      one[0] = count;
      together(body, one, count - 1, false);
    } finally {
      owner.unlock();
    }
  }

  /**
   * Runs a region whose tiles belong to nodes, those of one after those of another. Tiles of
   * different nodes are begun in no order.
   *
   * @param body the work
   * @param behind {@link #nodes} entries: behind each node's last tile
   * @param atHome whether a node's tiles must be done by its own members, because they take memory
   *     near to them; holds as long as these have time and no other forward is under way
   */
  void run(Region body, int[] behind, boolean atHome) {
    if (nodes == 1) {
      run(body, behind[0]);
      return;
    }
    int count = behind[nodes - 1];
    if (count == 0 || !owner.tryLock()) {
      alone(body, count);
      return;
    }
    try {
      together(body, behind, workers.length, atHome);
    } finally {
      owner.unlock();
    }
  }

  private static void alone(Region body, int count) {
    for (int i = 0; i < count; i++) {
      body.tile(i, 0);
    }
  }

  /** For the owner. */
  private void together(Region body, int[] behind, int helpers, boolean atHome) {
    region = body;
    ends = behind;
    strict = atHome && behind.length > 1;
    for (int q = 0; q < behind.length; q++) {
      next.set(q * APART, q == 0 ? 0 : behind[q - 1]);
    }
    failure = null;
    state.set((((state.get() >>> 32) + 1) << 32) | OPEN);
    for (int w = 0; w < Math.min(workers.length, helpers); w++) {
      if (parked.get(w) != 0) { // others look for themselves
        LockSupport.unpark(workers[w]);
      }
    }
    take(body, 0, callersNode());
    if (strict) {
      awaitNodes(body);
    }
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
  }

  /** The caller is pinned nowhere: it is of the node it happens to run on. */
  private int callersNode() {
    if (ends.length == 1) {
      return 0;
    }
    int processor = Affinity.current();
    for (int m = 0; m < node.length && m < places.size(); m++) {
      if (places.get(m).processor() == processor) {
        return node[m];
      }
    }
    return node[0];
  }

  /** Waits until all nodes have begun their last tiles; does those of one that does nothing. */
  private void awaitNodes(Region body) {
    for (int q = 0; q < ends.length; q++) {
      int seen = -1;
      long since = System.nanoTime();
      while (failure == null) {
        int at = next.get(q * APART);
        if (at >= ends[q]) {
          break;
        }
        if (at != seen) {
          seen = at;
          since = System.nanoTime();
        } else if (System.nanoTime() - since > PATIENCE_NANOS) {
          take(body, 0, q);
        }
        LockSupport.parkNanos(PAUSE_NANOS);
      }
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

  private void take(@Nullable Region body, int member, int home) {
    if (body == null) {
      return;
    }
    int queues = ends.length;
    int rounds = strict ? 1 : queues;
    try {
      for (int r = 0; r < rounds; r++) {
        int q = (home + r) % queues;
        int end = ends[q];
        int counter = q * APART;
        // Looked at first: a queue that is done is not written by everybody who comes by.
        while (next.get(counter) < end) {
          int i = next.getAndIncrement(counter);
          if (i < end) {
            body.tile(i, member);
          }
        }
      }
      settle();
    } catch (RuntimeException | Error t) {
      for (int q = 0; q < queues; q++) {
        next.set(q * APART, ends[q]);
      }
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
          parked.set(member - 1, 1);
          s = state.get();
          if ((s >>> 32) == seen || (s & OPEN) == 0) { // or nobody would wake it
            LockSupport.park(this);
          }
          parked.set(member - 1, 0);
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
          take(region, member, ends.length == 1 ? 0 : node[member]);
        } finally {
          state.decrementAndGet(); // or the caller waits for ever
        }
        return seen;
      }
    }
  }
}
