package io.moe4j.lora;

import io.moe4j.api.AdapterException;
import io.moe4j.api.device.Device;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.locks.Condition;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;

/**
 * The slots, who leases them, and who waits for them.
 *
 * <p>A batch takes all its slots in one step or none, so batches cannot hold some and wait for
 * others (no deadlock between batches). Waiting is first come, first served: while somebody waits,
 * later batches queue behind, so a batch that needs many slots is not starved by a stream of small
 * ones. One lock guards the table and the mutable parts of {@link AdapterEntry} and {@link
 * LoadedAdapter}; nothing slow happens under it.
 */
final class SlotTable {
  /** One batch in the queue. */
  private static final class Waiter {
    final Condition turn;

    Waiter(Condition turn) {
      this.turn = turn;
    }
  }

  private final ReentrantLock lock = new ReentrantLock();
  private final ArrayDeque<Waiter> queue = new ArrayDeque<>();
  private final @Nullable LoadedAdapter[] slots;
  // By slot: behind forwards that read what stood there last.
  private final List<List<Device.Fence>> reads = new ArrayList<>();
  private final long waitNanos;
  private long clock;
  private long hits;
  private long uploads;
  private long evictions;
  private long waits;

  SlotTable(int maxLoras, long waitNanos) {
    this.slots = new LoadedAdapter[maxLoras];
    for (int i = 0; i < maxLoras; i++) {
      reads.add(List.of());
    }
    this.waitNanos = waitNanos;
  }

  ReentrantLock lock() {
    return lock;
  }

  int size() {
    return slots.length;
  }

  /** A later number each time; under the lock. */
  long tick() {
    return ++clock;
  }

  /**
   * Leases the current version of every entry, in a slot.
   *
   * @param entries distinct, {@code 0..n-1} used
   * @param n at most {@link #size()}
   * @param leased receives the versions in the same order
   * @return device copies that lost their slot, for the caller to drop
   */
  List<Transfers.Leaving> acquire(
      @Nullable AdapterEntry[] entries, int n, @Nullable LoadedAdapter[] leased) {
    lock.lock();
    Waiter self = null;
    try {
      long left = waitNanos;
      while (true) {
        if (queue.isEmpty() || queue.peekFirst() == self) {
          List<Transfers.Leaving> dropped = tryAcquire(entries, n, leased);
          if (dropped != null) {
            return dropped;
          }
        }
        if (left <= 0) {
          throw timedOut(entries, n);
        }
        if (self == null) {
          self = new Waiter(lock.newCondition());
          queue.addLast(self);
          waits++;
        }
        left = self.turn.awaitNanos(left);
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new AdapterException(
          "interrupted while waiting for slots for the adapters " + names(entries, n), e);
    } finally {
      if (self != null) {
        queue.remove(self);
      }
      signalFirst();
      lock.unlock();
    }
  }

  /** Null if slots are missing now but batches that end will free them. */
  private @Nullable List<Transfers.Leaving> tryAcquire(
      @Nullable AdapterEntry[] entries, int n, @Nullable LoadedAdapter[] leased) {
    int missing = 0;
    for (int i = 0; i < n; i++) {
      AdapterEntry entry = at(entries, i);
      if (entry.unloaded) {
        throw new AdapterException(
            "adapter '" + entry.name + "' was unloaded while the batch was being made");
      }
    }
    for (int i = 0; i < n; i++) {
      LoadedAdapter version = at(entries, i).current();
      leased[i] = version;
      version.leases++;
      missing += version.slot < 0 ? 1 : 0;
    }
    // From here on the batch's own residents count as leased, so what is evictable is not its own.
    if (missing > slots.length - count(a -> !a.isEvictable())) {
      int pinnedByOthers = count(a -> a.isPinned() && !contains(leased, n, a));
      for (int i = 0; i < n; i++) {
        at(leased, i).leases--;
        leased[i] = null;
      }
      if (n > slots.length - pinnedByOthers) {
        throw new AdapterException(
            "the batch has "
                + n
                + " adapters "
                + names(entries, n)
                + ", but of "
                + slots.length
                + " slots "
                + pinnedByOthers
                + " are pinned to other adapters; unpin some or"
                + " raise maxLoras");
      }
      return null;
    }
    hits += n - missing;
    uploads += missing;
    List<Transfers.Leaving> dropped = List.of();
    for (int i = 0; i < n; i++) {
      LoadedAdapter version = at(leased, i);
      if (version.slot < 0) {
        dropped = place(version, dropped);
      }
      version.lastUse = tick();
      version.entry.lastUse = version.lastUse;
    }
    return dropped;
  }

  private List<Transfers.Leaving> place(LoadedAdapter version, List<Transfers.Leaving> dropped) {
    int best = -1;
    LoadedAdapter victim = null;
    for (int s = 0; s < slots.length; s++) {
      LoadedAdapter holder = slots[s];
      if (holder == null) {
        best = s;
        victim = null;
        break;
      }
      if (holder.isEvictable() && (victim == null || holder.lastUse < victim.lastUse)) {
        best = s;
        victim = holder;
      }
    }
    if (best < 0) {
      throw new IllegalStateException("no slot although one was counted");
    }
    List<Transfers.Leaving> out = dropped;
    if (victim != null) {
      evictions++;
      out = vacate(victim, dropped);
    }
    slots[best] = version;
    version.enter(best, reads.set(best, List.of()));
    return out;
  }

  private List<Transfers.Leaving> vacate(LoadedAdapter holder, List<Transfers.Leaving> dropped) {
    List<Transfers.Leaving> out = growable(dropped);
    int slot = holder.slot;
    slots[slot] = null;
    reads.set(slot, holder.leave(out));
    return out;
  }

  /** A retired version that nobody leases. */
  private List<Transfers.Leaving> forget(LoadedAdapter version, List<Transfers.Leaving> dropped) {
    List<Transfers.Leaving> out = version.slot < 0 ? growable(dropped) : vacate(version, dropped);
    version.forget(out);
    return out;
  }

  /** The common case loses nothing and allocates nothing. */
  private static List<Transfers.Leaving> growable(List<Transfers.Leaving> list) {
    return list instanceof ArrayList ? list : new ArrayList<>(list);
  }

  /**
   * Ends leases and clears the array.
   *
   * @param behind stands behind what reads the versions; null if that has finished
   * @return memory of retired versions that no batch holds any more, for the caller to drop
   */
  List<Transfers.Leaving> release(
      @Nullable LoadedAdapter[] leased, int n, Device.@Nullable Fence behind) {
    lock.lock();
    try {
      List<Transfers.Leaving> dropped = List.of();
      for (int i = 0; i < n; i++) {
        LoadedAdapter version = at(leased, i);
        leased[i] = null;
        version.leases--;
        if (behind != null) {
          version.addRead(behind);
        }
        if (version.retired && version.leases == 0) {
          dropped = forget(version, dropped);
        }
      }
      signalFirst();
      return dropped;
    } finally {
      lock.unlock();
    }
  }

  /**
   * Says that no new batch will get this version; under the lock.
   *
   * @return its memory if no batch holds it, for the caller to drop
   */
  List<Transfers.Leaving> retire(LoadedAdapter version) {
    version.retired = true;
    List<Transfers.Leaving> dropped = version.leases == 0 ? forget(version, List.of()) : List.of();
    signalFirst();
    return dropped;
  }

  /** Lets the first waiter look again; under the lock. */
  void signalFirst() {
    Waiter first = queue.peekFirst();
    if (first != null) {
      first.turn.signal();
    }
  }

  /** Under the lock. */
  AdapterStats stats(int loaded, long hostEvictions) {
    return new AdapterStats(
        hits,
        uploads,
        evictions,
        hostEvictions,
        waits,
        loaded,
        count(a -> true),
        count(a -> a.leases > 0));
  }

  private int count(Predicate<LoadedAdapter> which) {
    int n = 0;
    for (LoadedAdapter a : slots) {
      n += a != null && which.test(a) ? 1 : 0;
    }
    return n;
  }

  private AdapterException timedOut(@Nullable AdapterEntry[] entries, int n) {
    return new AdapterException(
        "waited "
            + waitNanos / 1_000_000
            + " ms for slots for the adapters "
            + names(entries, n)
            + "; of "
            + slots.length
            + " slots "
            + count(a -> a.leases > 0)
            + " are in use by open batches and "
            + count(LoadedAdapter::isPinned)
            + " are pinned. Close batches earlier, raise maxLoras, or raise slotWait");
  }

  private static boolean contains(@Nullable LoadedAdapter[] list, int n, LoadedAdapter wanted) {
    for (int i = 0; i < n; i++) {
      if (list[i] == wanted) {
        return true;
      }
    }
    return false;
  }

  private static String names(@Nullable AdapterEntry[] entries, int n) {
    return Arrays.stream(entries, 0, n).map(e -> e == null ? "?" : e.name).toList().toString();
  }

  private static <T> T at(@Nullable T[] array, int i) {
    return Objects.requireNonNull(array[i]);
  }
}
