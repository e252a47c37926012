package io.moe4j.backend.cpu;

import io.moe4j.api.DeviceException;
import io.moe4j.api.device.Device;
import io.moe4j.api.device.DeviceStream;
import io.moe4j.api.platform.DeviceInfo;
import io.moe4j.api.tensor.HostMemory;
import io.moe4j.api.tensor.Memory;
import io.moe4j.api.tensor.Tensor;
import io.moe4j.backend.cpu.ffi.HugeMemory;
import io.moe4j.reference.HostDevice;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;

/**
 * The host processor, with large buffers on huge pages: a product reads a column of many rows, each
 * on a page of its own otherwise. The system zeroes a page for the thread that writes it first.
 */
final class CpuDevice implements Device {
  /** Buffers of at least two huge pages, so that rounding up costs little. */
  private static final long LARGE = 4L << 20;

  private final HostDevice host;

  CpuDevice(DeviceInfo info) {
    host = new HostDevice(info);
  }

  @Override
  public DeviceInfo info() {
    return host.info();
  }

  @Override
  public Buffer allocate(long byteSize) {
    if (byteSize < LARGE || byteSize > Long.MAX_VALUE / 2 || !HugeMemory.isAvailable()) {
      return host.allocate(byteSize);
    }
    Arena arena = Arena.ofShared();
    try {
      MemorySegment segment = HugeMemory.allocate(byteSize, arena);
      return new LargeBuffer(arena, new HostMemory(segment));
    } catch (OutOfMemoryError e) {
      arena.close();
      throw new DeviceException("the host cannot allocate " + byteSize + " bytes", e);
    }
  }

  private record LargeBuffer(Arena arena, Memory memory) implements Buffer {
    @Override
    public void close() {
      if (arena.scope().isAlive()) {
        arena.close();
      }
    }
  }

  @Override
  public DeviceStream defaultStream() {
    return host.defaultStream();
  }

  @Override
  public void copy(Tensor from, Tensor to, DeviceStream stream) {
    host.copy(from, to, stream);
  }

  @Override
  public void close() {
    host.close();
  }
}
