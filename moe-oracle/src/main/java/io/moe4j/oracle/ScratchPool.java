package io.moe4j.oracle;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Objects;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/**
 * Scratch memory for the forwards of one or many layers on one device. Each running forward holds
 * one piece; a piece is taken from the device when there is none left, up to a bound, and after
 * that callers wait. The layers of a model run one after the other: give all of them one pool, and
 * the memory between input and output is taken once, not once a layer.
 *
 * <p>Safe for threads. Close it after the layers that use it.
 */
public final class ScratchPool implements AutoCloseable {
  private static final int MAX_DEFAULT = 8;

  private final Device device;
  private final int maxConcurrent;
  private final @Nullable Duration maxWait;
  private final Deque<Scratch> idle = new ArrayDeque<>();
  private int lent;
  private long bytes;
  private long waits;
  private long waitNanos;
  private long timeouts;
  private boolean closed;

  /**
   * A pool.
   *
   * @param device where the memory is; outlives the pool
   * @param maxConcurrent forwards at a time, at least 1. On a device other than the host the pool
   *     lends one piece at a time whatever is asked for, because all forwards of its users are
   *     enqueued on the device's default stream
   */
  public ScratchPool(Device device, int maxConcurrent) {
    this(maxConcurrent, device, null);
  }

  /**
   * A pool whose callers do not wait for ever.
   *
   * @param device where the memory is; outlives the pool
   * @param maxConcurrent forwards at a time, at least 1; one on a device other than the host
   * @param maxWait after waiting so long a forward throws {@link DeviceException} and has done
   *     nothing; zero = never wait
   * @since 0.1.0
   */
  public ScratchPool(Device device, int maxConcurrent, Duration maxWait) {
    this(maxConcurrent, device, requireNotNegative(maxWait));
  }

  /**
   * A pool for as many forwards at a time as there are processors, but at least 2 and at most 8.
   *
   * @param device where the memory is; outlives the pool
   */
  public ScratchPool(Device device) {
    this(device, Math.clamp(Runtime.getRuntime().availableProcessors(), 2, MAX_DEFAULT));
  }

  private ScratchPool(int maxConcurrent, Device device, @Nullable Duration maxWait) {
    this.device = Objects.requireNonNull(device, "device");
    if (maxConcurrent < 1) {
      throw new IllegalArgumentException(
          "maxConcurrent is " + maxConcurrent + ", must be at least 1");
    }
    this.maxConcurrent = isHost(device) ? maxConcurrent : 1;
    this.maxWait = maxWait;
  }

  private static Duration requireNotNegative(Duration maxWait) {
    if (maxWait.isNegative()) {
      throw new IllegalArgumentException("maxWait is " + maxWait + ", must not be negative");
    }
    return maxWait;
  }

  static boolean isHost(Device device) {
    return device.info().id().type().equals(DeviceType.CPU);
  }

  Device device() {
    return device;
  }

  /** {@return forwards at a time} */
  public int maxConcurrent() {
    return maxConcurrent;
  }

  /** {@return the pieces taken from the device so far and not given back to it} */
  public synchronized int size() {
    return lent + idle.size();
  }

  /** {@return pieces, bytes and waits} */
  public synchronized ScratchStats stats() {
    return new ScratchStats(size(), lent, bytes, waits, waitNanos, timeouts);
  }

  /** Waits for a piece; not interruptible, because a forward is not. */
  synchronized Scratch borrow(long needed) {
    if (mustWait()) {
      await();
    }
    if (closed) {
      throw new IllegalStateException("the scratch pool is closed");
    }
    Scratch scratch = idle.poll();
    if (scratch != null && scratch.bytes() < needed) {
      free(scratch);
      scratch = null;
    }
    if (scratch == null) {
      scratch = new Scratch(device, needed);
      bytes += needed;
    }
    lent++;
    return scratch;
  }

  private boolean mustWait() {
    return !closed && idle.isEmpty() && lent == maxConcurrent;
  }

  private void await() {
    waits++;
    long start = System.nanoTime();
    boolean interrupted = false;
    try {
      while (mustWait()) {
        long left =
            maxWait == null ? Long.MAX_VALUE : maxWait.toNanos() - (System.nanoTime() - start);
        if (left <= 0) {
          timeouts++;
          throw new DeviceException(
              "no scratch memory became free within "
                  + maxWait
                  + ": "
                  + lent
                  + " forwards run, and the pool of "
                  + device.info().id()
                  + " lends to "
                  + maxConcurrent
                  + " at a time");
        }
        try {
          TimeUnit.NANOSECONDS.timedWait(this, Math.max(left, 1_000_000));
        } catch (InterruptedException e) {
          interrupted = true;
        }
      }
    } finally {
      waitNanos += System.nanoTime() - start;
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
    }
  }

  synchronized void giveBack(Scratch scratch) {
    lent--;
    if (closed) {
      free(scratch);
    } else {
      idle.push(scratch);
    }
    notify();
  }

  private void free(Scratch scratch) {
    bytes -= scratch.bytes();
    try {
      device.defaultStream().synchronize(); // work that reads it may still be under way
    } finally {
      scratch.close(); // also where that work failed
    }
  }

  /** Gives the memory back; pieces in use follow when their forward ends. Harmless twice. */
  @Override
  public synchronized void close() {
    closed = true;
    try {
      RuntimeException failure = null;
      for (Scratch scratch; (scratch = idle.poll()) != null; ) {
        try {
          free(scratch);
        } catch (RuntimeException e) {
          failure = e;
        }
      }
      if (failure != null) {
        throw failure;
      }
    } finally {
      notifyAll();
    }
  }
}
