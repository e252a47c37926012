package io.moe4j.backend.flashinfer;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/**
 * A CUDA device that is none: its memory is the host's, its streams are names, and what is enqueued
 * has happened when the call returns. What the stand-in libraries read and write.
 */
@SuppressWarnings("restricted") // plays the card: its addresses are host memory
final class HostCuda implements Device {
  private final DeviceInfo info;
  private final AtomicLong taken = new AtomicLong();
  private final AtomicInteger captures = new AtomicInteger();
  private final AtomicInteger graphs = new AtomicInteger();
  private final AtomicInteger replays = new AtomicInteger();
  private volatile long limit = Long.MAX_VALUE;
  private volatile boolean records;
  private volatile boolean failingCapture;

  HostCuda(int major, int minor) {
    info = DeviceInfo.cuda(0, "a stand-in", major, minor);
  }

  /** A stream that only has a name. */
  record NamedStream(DeviceId device, long handle) implements OwnedStream {
    @Override
    public void synchronize() {}

    @Override
    public void close() {}
  }

  long taken() {
    return taken.get();
  }

  void limit(long bytes) {
    limit = bytes;
  }

  @Override
  public DeviceInfo info() {
    return info;
  }

  @Override
  public Buffer allocate(long byteSize) {
    if (byteSize > limit) {
      throw new DeviceException("out of memory: " + byteSize + " bytes asked for");
    }
    Arena arena = Arena.ofShared();
    MemorySegment bytes = arena.allocate(Math.max(1, byteSize), 256);
    bytes.fill((byte) 0xCD);
    taken.addAndGet(byteSize);
    DeviceMemory memory = new DeviceMemory(info.id(), bytes.address(), byteSize);
    AtomicBoolean open = new AtomicBoolean(true);
    return new Buffer() {
      @Override
      public Memory memory() {
        return memory;
      }

      @Override
      public void close() {
        if (open.compareAndSet(true, false)) {
          taken.addAndGet(-byteSize);
          arena.close();
        }
      }
    };
  }

  @Override
  public NamedStream defaultStream() {
    return stream(0xD0);
  }

  NamedStream stream(long handle) {
    return new NamedStream(info.id(), handle);
  }

  /** The bytes of a tensor, wherever it is; contiguous. */
  static MemorySegment bytes(Tensor t) {
    long size = t.dtype().byteSize(t.elementCount());
    return t.isHost()
        ? t.segment().asSlice(0, size)
        : MemorySegment.ofAddress(t.deviceAddress()).reinterpret(size);
  }

  /** The same tensor as one in host memory. */
  static Tensor onHost(Tensor t) {
    return Tensor.of(t.dtype(), new HostMemory(bytes(t)), t.shape());
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    if (from.dtype() != to.dtype()
        || !java.util.Arrays.equals(from.shape(), to.shape())
        || !from.isContiguous()
        || !to.isContiguous()) {
      throw new IllegalArgumentException("cannot copy " + from + " to " + to);
    }
    MemorySegment.copy(bytes(from), 0, bytes(to), 0, bytes(from).byteSize());
  }

  /**
   * Keeps what {@code work} does for later, on whatever addresses it has now: a replay does it
   * again. Fails on demand, and counts what is open.
   */
  @Override
  public Optional<Graph> capture(DeviceStream stream, Runnable work) {
    if (!records) {
      return Optional.empty();
    }
    captures.incrementAndGet();
    if (failingCapture) {
      throw new DeviceException("the captured work synchronised or allocated");
    }
    graphs.incrementAndGet();
    AtomicBoolean open = new AtomicBoolean(true);
    return Optional.of(
        new Graph() {
          @Override
          public void launch(DeviceStream on) {
            if (!open.get()) {
              throw new IllegalStateException("the graph is closed");
            }
            replays.incrementAndGet();
            work.run();
          }

          @Override
          public void close() {
            if (open.compareAndSet(true, false)) {
              graphs.decrementAndGet();
            }
          }
        });
  }

  /** From now on {@link #capture} records. */
  HostCuda recording() {
    records = true;
    return this;
  }

  /** From now on {@link #capture} fails. */
  void failCaptures() {
    failingCapture = true;
  }

  /** {@return how often something was to be recorded} */
  int captures() {
    return captures.get();
  }

  /** {@return graphs that nobody closed} */
  int graphs() {
    return graphs.get();
  }

  /** {@return launches of graphs} */
  int replays() {
    return replays.get();
  }

  @Override
  public void close() {}
}
