package io.moe4j.api.device;

import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * An open device: memory and streams. Safe for several threads; close it after everything made from
 * it.
 *
 * @since 0.1.0
 */
public interface Device extends AutoCloseable {
  /** Memory taken from a device; closing gives it back. */
  interface Buffer extends AutoCloseable {
    /** {@return the memory, valid until closed} */
    Memory memory();

    @Override
    void close();
  }

  /** Work recorded once and enqueued many times. */
  interface Graph extends AutoCloseable {
    /**
     * Enqueues the recorded work, which reads and writes the addresses it was recorded with. One
     * launch at a time may be in flight.
     *
     * @param stream any stream of the device
     */
    void launch(DeviceStream stream);

    @Override
    void close();
  }

  /**
   * The device's own clock around work of a stream: neither what the host takes to enqueue it nor
   * how long it takes to notice the end is in the time. For one thread at a time.
   *
   * @since 0.2.0
   */
  interface Timer extends AutoCloseable {
    /**
     * What is enqueued from here on counts. On a device that waits for work, the time until that
     * arrives counts as well: enqueue something before.
     *
     * @param stream of the device
     * @throws IllegalStateException if it is closed
     */
    void start(DeviceStream stream);

    /**
     * What is enqueued from here on no longer counts.
     *
     * @param stream the same
     * @throws IllegalStateException if it is closed
     */
    void stop(DeviceStream stream);

    /**
     * {@return microseconds from the start to the stop; waits until the device is there}
     *
     * @throws IllegalStateException if it is closed
     * @throws io.moe4j.api.DeviceException if it was not started and stopped, or the work failed
     */
    double micros();

    @Override
    void close();
  }

  /** A stream of the caller's; closing it lets the work on it finish. */
  interface OwnedStream extends DeviceStream, AutoCloseable {
    @Override
    void close();
  }

  /**
   * A point in the work of a stream, for other streams to wait for without the host waiting. Safe
   * for several threads. Holds a little of the device until it is closed or was seen to be done.
   */
  interface Fence extends AutoCloseable {
    /** Behind work that has finished. */
    Fence DONE =
        new Fence() {
          @Override
          public boolean isDone() {
            return true;
          }

          @Override
          public boolean makeWait(DeviceStream stream) {
            return false;
          }

          @Override
          public void close() {}
        };

    /** {@return whether the work in front of it has finished; does not wait} */
    boolean isDone();

    /**
     * Makes a stream's later work wait until the work in front of the fence has finished. The host
     * does not wait. Does nothing to a stream whose work is being recorded: a recording cannot
     * depend on what was enqueued outside, so the caller waits before a replay.
     *
     * @param stream of the fence's device
     * @return false if the work had finished, so that there is no need to ask again
     */
    boolean makeWait(DeviceStream stream);

    /** Makes no stream wait from then on. May be called twice. */
    @Override
    void close();
  }

  /** {@return what is known of it} */
  DeviceInfo info();

  /**
   * Takes memory, aligned to at least {@link Workspace#ALIGNMENT} bytes; contents undefined.
   *
   * @param byteSize not negative
   * @return the buffer, owned by the caller
   * @throws io.moe4j.api.DeviceException if there is not enough
   */
  Buffer allocate(long byteSize);

  /**
   * Takes memory for work on a stream, where the device can do so without waiting for anything: to
   * be used by what is enqueued there afterwards, or behind a {@link #fence} of it. Closing the
   * buffer gives it back behind the work enqueued on that stream so far, which must still be open.
   * By default the same as {@link #allocate(long)}.
   *
   * @param byteSize not negative
   * @param stream of this device
   * @return the buffer, owned by the caller
   * @throws io.moe4j.api.DeviceException if there is not enough
   */
  default Buffer allocate(long byteSize, DeviceStream stream) {
    return allocate(byteSize);
  }

  /**
   * Takes host memory that {@link #copy} reads and writes fastest and without holding up the host:
   * page-locked where the device knows such a thing, ordinary native memory by default. What a copy
   * reads may not change before the copy has run. Slow to take; keep it.
   *
   * @param byteSize not negative
   * @return a buffer of {@link io.moe4j.api.tensor.HostMemory}, owned by the caller
   * @throws io.moe4j.api.DeviceException if there is not enough
   */
  default Buffer allocateHost(long byteSize) {
    Arena arena = Arena.ofShared();
    Memory memory = new HostMemory(arena.allocate(byteSize, Workspace.ALIGNMENT));
    AtomicBoolean open = new AtomicBoolean(true);
    return new Buffer() {
      @Override
      public Memory memory() {
        return memory;
      }

      @Override
      public void close() {
        if (open.compareAndSet(true, false)) {
          arena.close();
        }
      }
    };
  }

  /** {@return the stream to use when the caller has none} */
  DeviceStream defaultStream();

  /**
   * {@return a stream whose work runs beside that of others, owned by the caller; by default a view
   * of the default stream}
   */
  default OwnedStream newStream() {
    DeviceStream stream = defaultStream();
    return new OwnedStream() {
      @Override
      public DeviceId device() {
        return stream.device();
      }

      @Override
      public long handle() {
        return stream.handle();
      }

      @Override
      public void synchronize() {
        stream.synchronize();
      }

      @Override
      public void close() {}
    };
  }

  /**
   * Marks what has been enqueued on a stream so far. By default waits for it.
   *
   * @param stream of this device, not while its work is being recorded
   * @return a fence behind that work, owned by the caller
   */
  default Fence fence(DeviceStream stream) {
    stream.synchronize();
    return Fence.DONE;
  }

  /**
   * Copies elements; same shape and dtype, both contiguous, either side on the host or on this
   * device.
   *
   * @param from source
   * @param to destination
   * @param stream ordered with its work; a host destination is complete only after {@link
   *     DeviceStream#synchronize()}
   */
  void copy(Tensor from, Tensor to, DeviceStream stream);

  /**
   * Records what {@code work} enqueues on a stream instead of running it. Run the work once before:
   * kernels are loaded when they are first used, which cannot be recorded.
   *
   * @param stream of this device
   * @param work must neither allocate, nor synchronise, nor read results
   * @return the graph, owned by the caller; empty where the device records nothing, and {@code
   *     work} was not called
   * @throws io.moe4j.api.DeviceException if the work did what a recording cannot hold
   */
  default Optional<Graph> capture(DeviceStream stream, Runnable work) {
    return Optional.empty();
  }

  /**
   * A timer of this device.
   *
   * @return owned by the caller; empty where the device has no clock of its own
   * @since 0.2.0
   */
  default Optional<Timer> newTimer() {
    return Optional.empty();
  }

  /**
   * Runs work between the marks that a profiler waits for if it is told not to begin with the
   * process: {@code cuProfilerStart} and {@code cuProfilerStop} of CUDA, as {@code ncu
   * --profile-from-start off} and {@code nsys --capture-range cudaProfilerApi} heed them. Waits for
   * the stream before and after. Without a profiler, or on a device that has no such marks, the
   * work just runs.
   *
   * @param stream of this device, whose work is meant
   * @param work enqueues it
   * @since 0.2.0
   */
  default void profiled(DeviceStream stream, Runnable work) {
    stream.synchronize();
    work.run();
    stream.synchronize();
  }

  @Override
  void close();
}
