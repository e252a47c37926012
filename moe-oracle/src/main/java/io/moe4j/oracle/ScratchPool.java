package io.moe4j.oracle;

import io.moe4j.api.device.Device;
import io.moe4j.api.platform.DeviceType;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Objects;

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
  private final Deque<Scratch> idle = new ArrayDeque<>();
  private int lent;
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
    this.device = Objects.requireNonNull(device, "device");
    if (maxConcurrent < 1) {
      throw new IllegalArgumentException(
          "maxConcurrent is " + maxConcurrent + ", must be at least 1");
    }
    this.maxConcurrent = isHost(device) ? maxConcurrent : 1;
  }

  /**
   * A pool for as many forwards at a time as there are processors, but at least 2 and at most 8.
   *
   * @param device where the memory is; outlives the pool
   */
  public ScratchPool(Device device) {
    this(device, Math.clamp(Runtime.getRuntime().availableProcessors(), 2, MAX_DEFAULT));
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

  /** Waits for a piece; not interruptible, because a forward is not. */
  synchronized Scratch borrow(long bytes) {
    boolean interrupted = false;
    while (!closed && idle.isEmpty() && lent == maxConcurrent) {
      try {
        wait();
      } catch (InterruptedException e) {
        interrupted = true;
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    if (closed) {
      throw new IllegalStateException("the scratch pool is closed");
    }
    Scratch scratch = idle.poll();
    if (scratch != null && scratch.bytes() < bytes) {
      free(scratch);
      scratch = null;
    }
    if (scratch == null) {
      scratch = new Scratch(device, bytes);
    }
    lent++;
    return scratch;
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
    device.defaultStream().synchronize(); // work that reads it may still be under way
    scratch.close();
  }

  /** Gives the memory back; pieces in use follow when their forward ends. Harmless twice. */
  @Override
  public synchronized void close() {
    closed = true;
    idle.forEach(this::free);
    idle.clear();
    notifyAll();
  }
}
