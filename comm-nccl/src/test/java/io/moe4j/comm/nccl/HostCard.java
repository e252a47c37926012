package io.moe4j.comm.nccl;

import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceId;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.DeviceMemory;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.cuda.StreamGuard;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.locks.LockSupport;

/**
 * A CUDA device that is none: its memory is the host's, and what is enqueued has happened when the
 * call returns, unless the stand-in for NCCL is stuck; then so is the stream. Plays the card for
 * the communicator as well.
 */
@SuppressWarnings("restricted") // its addresses are host memory
final class HostCard implements Device, Card {
  private final DeviceInfo info;
  private final AtomicLong taken = new AtomicLong();
  final AtomicLong marks = new AtomicLong();
  final List<StreamGuard> guards = new CopyOnWriteArrayList<>();
  volatile boolean capturing;

  HostCard(int ordinal) {
    info = DeviceInfo.cuda(ordinal, "a stand-in", 9, 0);
  }

  private boolean isStuck() {
    return Standin.ask("stuck " + info.id().ordinal()) != 0;
  }

  /** Its only stream. */
  private final class OneStream implements OwnedStream {
    @Override
    public DeviceId device() {
      return info.id();
    }

    @Override
    public long handle() {
      return 0xD0L + info.id().ordinal();
    }

    @Override
    public void synchronize() {
      while (isStuck()) {
        LockSupport.parkNanos(1_000_000);
      }
      guards.forEach(g -> g.check(this));
    }

    @Override
    public void close() {}
  }

  private final OneStream stream = new OneStream();

  /** {@return bytes that nobody gave back} */
  long taken() {
    return taken.get();
  }

  @Override
  public DeviceInfo info() {
    return info;
  }

  @Override
  public DeviceId id() {
    return info.id();
  }

  @Override
  public void makeCurrent() {}

  @Override
  public boolean isCapturing(DeviceStream of) {
    return capturing;
  }

  @Override
  public Mark newMark() {
    marks.incrementAndGet();
    return new Mark() {
      private boolean behindStuck;

      @Override
      public void record(DeviceStream on) {
        behindStuck = isStuck();
      }

      @Override
      public boolean isDone() {
        return !behindStuck || !isStuck();
      }

      @Override
      public void close() {
        marks.decrementAndGet();
      }
    };
  }

  @Override
  public void addGuard(StreamGuard guard) {
    guards.add(guard);
  }

  @Override
  public void removeGuard(StreamGuard guard) {
    guards.remove(guard);
  }

  @Override
  public Buffer allocate(long byteSize) {
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
  public OwnedStream defaultStream() {
    return stream;
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
  public void copy(Tensor from, Tensor to, DeviceStream on) {
    if (from.dtype() != to.dtype()
        || !Arrays.equals(from.shape(), to.shape())
        || !from.isContiguous()
        || !to.isContiguous()) {
      throw new IllegalArgumentException("cannot copy " + from + " to " + to);
    }
    MemorySegment.copy(bytes(from), 0, bytes(to), 0, bytes(from).byteSize());
  }

  @Override
  public void close() {}
}
