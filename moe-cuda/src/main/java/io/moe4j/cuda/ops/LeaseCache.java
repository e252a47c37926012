package io.moe4j.cuda.ops;

import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Consumer;
import java.util.function.Predicate;
import org.jspecify.annotations.Nullable;

/**
 * Objects on a device that calls look up and use while they enqueue work. A few are kept when no
 * call uses them; beyond that the least recently used one is closed. One that is in use, or that a
 * captured graph may read at any time, is never closed before the cache is; so the cache grows
 * where more than a few are needed at once. Safe for several threads.
 *
 * @param <V> what is kept
 * @since 0.2.0
 */
public final class LeaseCache<V> {
  private static final int RETIRED = -1;

  /**
   * One of the objects, and who uses it.
   *
   * @param <V> what is kept
   */
  public static final class Lease<V> implements AutoCloseable {
    private final V value;
    private final AtomicInteger users = new AtomicInteger();
    private volatile boolean recorded;

    private Lease(V value) {
      this.value = value;
    }

    /** {@return the object, valid between {@link #begin} and {@link #close}} */
    public V value() {
      return value;
    }

    /** {@return whether the object may be used, until {@link #close}; false once it is gone} */
    public boolean begin() {
      return users.getAndUpdate(n -> n == RETIRED ? n : n + 1) != RETIRED;
    }

    /** Keeps the object as long as the cache: a captured graph has its address. */
    public void keep() {
      if (!recorded) { // twice at once counts twice, which does no harm
        recorded = true;
        users.getAndIncrement(); // a use that never ends
      }
    }

    /** Ends a use: whatever reads the object is enqueued. */
    @Override
    public void close() {
      users.getAndDecrement();
    }

    private boolean retire() {
      return users.compareAndSet(0, RETIRED);
    }
  }

  private final int idle;
  private final Consumer<V> closer;
  private final List<Lease<V>> leases = new ArrayList<>();

  /**
   * An empty cache.
   *
   * @param idle how many objects are kept that no call uses
   * @param closer closes one, and first waits for work on the device that reads it
   */
  public LeaseCache(int idle, Consumer<V> closer) {
    this.idle = idle;
    this.closer = closer;
  }

  /**
   * {@return the object used last of those that fit, in use until the lease is closed; null if none
   * does}
   *
   * @param fits which
   */
  public synchronized @Nullable Lease<V> find(Predicate<V> fits) {
    for (int i = leases.size() - 1; i >= 0; i--) {
      Lease<V> lease = leases.get(i);
      if (fits.test(lease.value) && lease.begin()) {
        leases.remove(i);
        leases.add(lease);
        return lease;
      }
    }
    return null;
  }

  /** Closes what is over the number kept; call it before something is made. */
  public synchronized void makeRoom() {
    // What stays anyway takes no room from the others.
    long others = leases.stream().filter(l -> !l.recorded).count();
    for (int i = 0; others >= idle && i < leases.size(); ) {
      Lease<V> lease = leases.get(i);
      if (lease.retire()) {
        leases.remove(i);
        others--;
        closer.accept(lease.value);
      } else {
        i++;
      }
    }
  }

  /**
   * {@return a lease of a new object, in use until it is closed}
   *
   * @param value the cache's from now on
   */
  public synchronized Lease<V> add(V value) {
    Lease<V> lease = new Lease<>(value);
    lease.begin();
    leases.add(lease);
    return lease;
  }

  /** Closes all of them, in use or not. */
  public synchronized void closeAll() {
    leases.forEach(l -> closer.accept(l.value));
    leases.clear();
  }
}
